"""A checkpoint -> a network that predicts and is exported."""
