"""Where data and models come from."""
