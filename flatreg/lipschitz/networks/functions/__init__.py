"""Functions that are bounded as a whole, not operation by operation."""
