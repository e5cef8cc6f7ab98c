"""Data sets: loading, preparation, label noise and augmentation."""
