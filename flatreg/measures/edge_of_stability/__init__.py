"""How close training is to the edge of stability: the sharpness relative to the learning rate."""
