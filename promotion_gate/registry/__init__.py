"""The model registry behind one interface."""
