"""Implicit gradient regularization: modified losses, gradient flow and gradient noise."""
