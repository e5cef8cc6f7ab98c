"""Eigenvalues, trace, diagonal and density of the Hessian, and how fast it changes."""
