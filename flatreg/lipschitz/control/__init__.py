"""Penalties, projections and normalization of spectral norms during training."""
