"""Parts of ftlit with a name and a version, for the tests of outputs and keys."""

import importlib
import pkgutil
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ftlit.data.input_spec import InputSpec
from ftlit.identity.code_identity import _stable_names
from ftlit.zoo import text_blocks, text_encoders
from ftlit.zoo.timm_split.grid_constants import WithGridConstants
from ftlit.zoo.timm_split.timm_partial import PartialForward

SPEC = InputSpec(size=6, resize=7)


class Masked(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens * mask.sum()


def text_embeddings() -> nn.Module:
    return text_encoders.TokenEmbeddings(SimpleNamespace(embeddings=nn.Embedding(4, 3)), pad_id=1)


def rotary_block() -> nn.Module:
    """Return attention to one token on either side: the sum of the rotations of each token times how many it attends to."""
    return text_blocks.RotaryBlock(Attending(), Rotations(), 1)


class Attending(nn.Module):
    attention_type = "sliding_attention"

    def forward(self, tokens: Tensor, attention_mask: Tensor, position_embeddings: Tensor) -> Tensor:
        return tokens * position_embeddings * attention_mask.sum(dim=(1, 3))[..., None]


class Rotations(nn.Module):
    def forward(self, tokens: Tensor, positions: Tensor, attention_type: str) -> Tensor:
        return positions[..., None] + len(attention_type)


def relative_block() -> nn.Module:
    block = Relative()
    block.rel_embeddings, block.rel_norm = nn.Embedding(2, 3), nn.Identity()
    return text_blocks.RelativeBlock(block)


class Relative(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor, rel_embeddings: Tensor) -> tuple[Tensor]:
        return (tokens * mask[:, 0, 0, :, None] + rel_embeddings.sum(),)


def block_with_constants() -> nn.Module:
    before = PartialForward(nn.ReLU(), "forward")
    return WithGridConstants(Masked(), "blocks.0", before, torch.Size((3, 4, 4)), torch.Size((5, 3)), {"mask": torch.arange(3.0)})


def versions_of_ftlit() -> list[str]:
    """Import all modules with versioned parts; return name and version of each part, sorted."""
    for module in pkgutil.walk_packages(importlib.import_module("ftlit").__path__, "ftlit."):
        if module.name.split(".")[1] in ("data", "features", "models", "zoo"):
            importlib.import_module(module.name)
    return sorted(name for thing, name in _stable_names.items() if thing.__module__.startswith("ftlit."))
