"""Measures the cost of one training step of each method."""
