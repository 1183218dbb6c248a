"""The gate a model passes on its way from the MLflow registry into production."""

__version__ = "0.1.0"
