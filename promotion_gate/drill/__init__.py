"""The renderer, the poisons and the embedded demo."""
