"""Linear maps: what a layer does to its input, and how to find the maps of a model."""
