"""What identifies weights, parameters, code and data."""
