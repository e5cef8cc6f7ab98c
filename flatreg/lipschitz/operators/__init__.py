"""What a layer does to its input, as a linear map."""
