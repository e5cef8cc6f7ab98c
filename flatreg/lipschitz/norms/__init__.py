"""Norms of linear maps, computed as lower and upper bounds."""
