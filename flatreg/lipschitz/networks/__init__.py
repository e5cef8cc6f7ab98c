"""Lipschitz bounds of whole networks, and the certificates that follow from them."""
