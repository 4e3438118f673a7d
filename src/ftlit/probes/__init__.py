"""Linear probes, solved; transferability; which scenario."""
