"""Bounds on the Lipschitz constants of whole networks, and certificates that follow from them."""
