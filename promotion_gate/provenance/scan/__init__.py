"""Finds every place in a repository where data enters, and says which of them nobody has registered."""
