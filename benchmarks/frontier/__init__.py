"""What a gradient buys: the accuracy of each tuned method against the compute that it may use."""
