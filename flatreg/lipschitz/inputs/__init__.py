"""Gradients with respect to the input: penalties and measures of sensitivity."""
