"""Training one method on several devices and processes."""
