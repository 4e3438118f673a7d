"""What trains when, at which rate; no Lightning."""
