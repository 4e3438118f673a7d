"""A checkpoint -> a network that predicts."""
