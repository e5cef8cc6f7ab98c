"""Claims of the papers, tested on real data."""
