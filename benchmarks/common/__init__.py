"""What several benchmark commands share."""
