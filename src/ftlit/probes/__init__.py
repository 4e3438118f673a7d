"""Linear probes, transferability, advice on the scenario."""
