"""Measures functions of JAX and Optax that flatreg could use in place of its own."""
