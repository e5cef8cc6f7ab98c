"""PACGen's toy problem: a network with two weights that has a sharp and a flat minimum."""
