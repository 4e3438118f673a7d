"""The run that a run with `init_from` goes on from: its files, its network, its classes, and the comparison with it."""
