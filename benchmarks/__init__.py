"""The benchmarks of flatreg, one package per command; README.md describes them."""
