"""Measures the accuracy, the time and the memory of curvature estimates."""
