"""A Wasserstein GAN whose critic is bounded in three ways."""
