"""Measures training steps on a GPU or TPU in a few minutes."""
