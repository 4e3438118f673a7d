"""Classes and functions whose fingerprints the tests compare."""

from torch import nn


class Scale(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Node:
    def __init__(self, name: str = "a") -> None:
        self.name = name


def double(x):
    return x * 2
