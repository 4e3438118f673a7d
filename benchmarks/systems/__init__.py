"""Ways to fine-tune a network, each with the defaults of its documentation, on the same task."""
