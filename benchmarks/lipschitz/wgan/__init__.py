"""A Wasserstein GAN in the plane, with three kinds of critics."""
