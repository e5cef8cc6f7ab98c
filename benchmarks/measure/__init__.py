"""Flatness measures of one trained network."""
