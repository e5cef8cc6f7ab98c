"""Trains one method on any number of devices and processes."""
