"""Networks of timm with some modules removed: what remains of their `forward_features` is the code around these modules."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from ftlit.identity.code_identity import versioned

BESIDE_LINEAR = (nn.BatchNorm1d, nn.Dropout, nn.Identity, nn.Linear)


@versioned("partial_forward", 1)
class PartialForward(nn.Module):
    """Some methods of a network, run one after the other.

    Args:
        model: a timm network, or a partial copy of one (`without`).
        methods: names of methods, or of modules; `forward_head` stops before the classifier.
    """

    def __init__(self, model: Any, *methods: str) -> None:
        super().__init__()
        self.model = model
        self.methods = methods

    def forward(self, x: Tensor) -> Tensor:
        """Run the methods on features, or on images."""
        for method in self.methods:
            x = self.model.forward_head(x, pre_logits=True) if method == "forward_head" else getattr(self.model, method)(x)
        return x


@versioned("pass_through", 1)
class PassThrough(nn.Identity):
    """The identity in the place of a module, whatever other arguments that module takes."""

    def forward(self, x: Tensor | None = None, *others: Any, **named: Any) -> Tensor | None:  # type: ignore[override]
        """Return the first argument."""
        return x


@versioned("clone_input", 1)
class CloneInput(nn.Module):
    """A copy of the features at a cut, in front of a layer that modifies its argument in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Copy the features."""
        return x.clone()


@versioned("average_logits", 1)
class AverageLogits(nn.ModuleList):
    """Parallel classifiers, as in distilled networks: one was trained on labels, one on a teacher's predictions."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Average the logits of all classifiers."""
        return torch.stack([classifier(vectors) for classifier in self]).mean(dim=0)


def without(model: nn.Module, names: Iterable[str], parameters: Iterable[str] = ()) -> nn.Module:
    """Make a partial copy of `model`, which shares all other modules.

    Args:
        model: it stays as it is.
        names: paths of modules to replace by the identity.
        parameters: names of the network's direct parameters to remove.
    """
    partial_copy = with_modules(model, {name: PassThrough() for name in sorted(names)})
    for name in parameters:
        del partial_copy._parameters[name]
    return partial_copy


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Copy `model` with other modules at some paths; it shares the others. Paths inside a removed module are left out."""
    partial_copy = _shallow_copy(model)
    for name, module in modules.items():
        *path, leaf = name.split(".")
        parent = partial_copy
        for part in path:
            child = parent._modules[part]
            if child is None or isinstance(child, nn.Identity):
                break
            parent._modules[part] = parent = _shallow_copy(child)
        else:
            parent._modules[leaf] = module
    return partial_copy


def _shallow_copy(module: nn.Module) -> nn.Module:
    shallow = module.__class__.__new__(module.__class__)
    vars(shallow).update({name: copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()})
    return shallow


def classifier_paths(model: Any) -> list[str]:
    """List the paths of the classifiers; distilled networks have more than one."""
    found = model.get_classifier()
    classifiers = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    named = ((name, module) for name, module in model.named_modules() if not isinstance(module, nn.Identity))
    return [_last_linear(model, name) for name, module in named if any(module is classifier for classifier in classifiers)]


def _last_linear(model: nn.Module, path: str) -> str:
    """Return the path of a head's last linear layer, together with a batch norm right before it."""
    if isinstance(getattr(model.get_submodule(path), "fc", None), nn.Module):
        return f"{path}.fc"
    parent = model.get_submodule(path.rpartition(".")[0])
    with_norm = isinstance(parent, nn.Sequential) and all(isinstance(module, BESIDE_LINEAR) for module in parent)
    return path.rpartition(".")[0] if with_norm else path


def channels_first(modules: Sequence[nn.Module], given: Tensor | None, result: Tensor | None, *, cloned: bool = False) -> nn.Module:
    """Join modules into one that takes and gives maps N, C, H, W, whatever order they compute in.

    Args:
        modules: they run one after the other.
        given: input of the first; its shape tells the order.
        result: output of the last.
        cloned: whether to copy the input first.
    """
    sequence: list[nn.Module] = [CloneInput()] if cloned else []
    sequence += [Permute([0, 2, 3, 1])] if _is_channels_last(given) else []
    sequence += modules
    sequence += [Permute([0, 3, 1, 2])] if _is_channels_last(result) else []
    return sequence[0] if len(sequence) == 1 else nn.Sequential(*sequence)


def _is_channels_last(features: Tensor | None) -> bool:
    """Whether features are N, H, W, C: images are square here, so the two equal sizes are height and width."""
    return features is not None and features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]
