"""Told by MLflow's registry webhooks, and asking by itself as a fallback: gate each new version once."""
