"""Compiles training steps for many devices without running them, and counts what they need."""
