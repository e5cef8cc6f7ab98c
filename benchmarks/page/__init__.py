"""Collects all recorded results on one page, benchmarks/results/RESULTS.md."""
