"""The Hessian: its eigenpairs, trace, diagonal, spectral density and Lipschitz constant."""
