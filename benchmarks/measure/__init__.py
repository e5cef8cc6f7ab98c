"""Measures the flatness of a minimum that a comparison has found."""
