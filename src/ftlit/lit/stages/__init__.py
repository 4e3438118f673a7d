"""The stages of a schedule in training: when they begin, what they freeze, and checks of both."""
