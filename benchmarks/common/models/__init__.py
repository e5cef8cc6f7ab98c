"""The networks that the benchmarks train, in Flax Linen."""
