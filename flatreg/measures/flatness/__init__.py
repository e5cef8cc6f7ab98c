"""Zeroth-order flatness R⁰ and first-order flatness R¹: maxima over a ball of weights."""
