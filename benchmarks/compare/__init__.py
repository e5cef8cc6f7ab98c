"""Training methods compared with the plain optimizer."""
