"""Ways to control the Lipschitz constant of a network, compared."""
