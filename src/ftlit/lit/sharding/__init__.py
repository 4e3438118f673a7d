"""Training with sharded weights: the strategy, its checkpoints, and the memory that a process needs."""
