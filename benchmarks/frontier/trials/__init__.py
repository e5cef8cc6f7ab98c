"""Trials: which methods there are, what they train on, how they train, what is recorded."""
