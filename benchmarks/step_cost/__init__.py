"""The cost of one training step of each method."""
