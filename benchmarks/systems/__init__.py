"""What a user would pick to fine-tune a network, each at the defaults of its documentation, on one and the same task."""
