"""The model and what it answers, from verified files and inside a sandbox."""
