"""PAC-Bayes bounds and the PACGen metric."""
