"""What the Linen and NNX train steps share."""
