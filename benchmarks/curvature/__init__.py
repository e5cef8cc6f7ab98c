"""Accuracy, time and memory of curvature estimates."""
