"""Files of weights: found, read, and put into the layers of a network. No code in a file is ever executed."""
