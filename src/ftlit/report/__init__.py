"""A run's folder -> pictures and one page: what was planned, what happened, what the network takes for what."""
