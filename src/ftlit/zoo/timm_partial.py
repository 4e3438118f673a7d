"""A network that lacks some of its modules: what is left of its `forward_features` are the lines around them."""

from collections.abc import Iterable
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.code_identity import versioned


@versioned("partial_forward", 1)
class PartialForward(nn.Module):
    """Some methods of a network, one after the other.

    Args:
        model: a timm network, or a twin of it.
        lines: names of methods, or of modules; `forward_head` stops in front of the classifier.
    """

    def __init__(self, model: Any, *lines: str) -> None:
        super().__init__()
        self.model = model
        self.lines = lines

    def forward(self, x: Tensor) -> Tensor:
        """What the methods make of features, or of images."""
        for line in self.lines:
            x = self.model.forward_head(x, pre_logits=True) if line == "forward_head" else getattr(self.model, line)(x)
        return x


@versioned("clone_input", 1)
class CloneInput(nn.Module):
    """Stands in front of a layer that writes into its argument, as that are the features at a cut."""

    def forward(self, x: Tensor) -> Tensor:
        """The same, elsewhere."""
        return x.clone()


@versioned("average_logits", 1)
class AverageLogits(nn.ModuleList):
    """Classifiers side by side, as distilled networks have them: one was trained on labels, one on a teacher's answers."""

    def forward(self, vectors: Tensor) -> Tensor:
        """The mean of their logits."""
        return torch.stack([classifier(vectors) for classifier in self]).mean(dim=0)


def without(model: nn.Module, names: Iterable[str], parameters: Iterable[str] = ()) -> nn.Module:
    """A twin of `model`: other modules shared, those called `names` replaced by the identity, its own `parameters` gone."""
    twin = _shallow(model)
    for name in parameters:
        del twin._parameters[name]
    for name in sorted(names):
        *path, leaf = name.split(".")
        parent = twin
        for part in path:
            child = parent._modules[part]
            if child is None or isinstance(child, nn.Identity):
                break
            parent._modules[part] = parent = _shallow(child)
        else:
            parent._modules[leaf] = nn.Identity()
    return twin


def _shallow(module: nn.Module) -> nn.Module:
    twin = module.__class__.__new__(module.__class__)
    vars(twin).update({name: copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()})
    return twin
