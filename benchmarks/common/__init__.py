"""Modules that several benchmark commands share."""
