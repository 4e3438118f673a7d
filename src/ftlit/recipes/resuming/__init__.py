"""What a run leaves for the next one, and how it is read: checkpoint, config, data and split."""
