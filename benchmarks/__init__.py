"""Benchmarks of flatreg on real data: `python -m benchmarks.compare`."""
