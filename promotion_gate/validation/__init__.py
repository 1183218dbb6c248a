"""Data sets examined without a model: expectations, their report, and the contact sheet for a person."""
