"""PAC-Bayes bounds, the largest weight noise that a network tolerates, and the PACGen metric."""
