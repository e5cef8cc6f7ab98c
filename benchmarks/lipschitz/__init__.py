"""Compares ways to control the Lipschitz constant of a network."""
