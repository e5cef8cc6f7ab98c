"""The loss, or any other metric, under random noise on the weights."""
