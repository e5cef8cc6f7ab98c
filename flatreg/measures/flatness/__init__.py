"""Zeroth- and first-order flatness: maxima over a ball of weights."""
