"""What the user reads: the plan before a run, its results, advice, and the commands to go on with."""
