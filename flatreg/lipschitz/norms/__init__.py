"""Norms of linear maps, with lower and upper bounds."""
