"""Gradients with respect to the input: penalties and sensitivity measures."""
