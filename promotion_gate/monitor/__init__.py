"""Watching a model in production: logged predictions, baselines, drift, alarms and metrics."""
