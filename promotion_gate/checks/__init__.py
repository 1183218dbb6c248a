"""The measurements: one file a check."""
