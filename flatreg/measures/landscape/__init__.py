"""The loss along lines and planes in weight space."""
