"""Parts of ftlit with a name and a version, for the tests of outputs and keys."""

import importlib
import pkgutil
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ftlit.code_identity import _stable_names
from ftlit.data.input_spec import InputSpec
from ftlit.zoo import text_encoders
from ftlit.zoo.timm_split.grid_constants import WithGridConstants
from ftlit.zoo.timm_split.timm_partial import PartialForward

SPEC = InputSpec(size=6, resize=7)


class Masked(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens * mask.sum()


def text_embeddings() -> nn.Module:
    return text_encoders.TokenEmbeddings(SimpleNamespace(embeddings=nn.Embedding(4, 3)), pad_id=1)


def block_with_constants() -> nn.Module:
    before = PartialForward(nn.ReLU(), "forward")
    return WithGridConstants(Masked(), "blocks.0", before, torch.Size((3, 4, 4)), torch.Size((5, 3)), {"mask": torch.arange(3.0)})


def versions_of_ftlit() -> list[str]:
    """Import all modules with versioned parts; return name and version of each part, sorted."""
    for module in pkgutil.walk_packages(importlib.import_module("ftlit").__path__, "ftlit."):
        if module.name.split(".")[1] in ("data", "features", "models", "zoo"):
            importlib.import_module(module.name)
    return sorted(name for thing, name in _stable_names.items() if thing.__module__.startswith("ftlit."))
