"""Labelled image sets, read as streams."""
