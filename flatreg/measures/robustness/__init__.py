"""The effect of weight noise on the loss and on other metrics."""
