"""Layers of text encoders that take more than tokens and a mask: ModernBERT's rotary positions and windows, DeBERTa's relative positions.

Here each takes tokens and the mask, and holds the rest itself.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.identity.code_identity import versioned
from ftlit.models.pooling import real_tokens

SHARED_TENSORS = {"encoder.rel_embeddings.": "rel_embeddings.", "encoder.LayerNorm.": "rel_norm."}  # DeBERTa: all layers read them


@versioned("rotary_block", 1)
class RotaryBlock(nn.Module):
    """A layer of ModernBERT with its rotary positions; its attention is global, or reaches `window` tokens to either side.

    Args:
        block: a layer of transformers, shared.
        rotary: the table of rotations, which has no weights, shared.
        window: the reach of local attention, or `None`.
    """

    def __init__(self, block: Any, rotary: nn.Module, window: int | None) -> None:
        super().__init__()
        self.block, self.rotary, self.window = block, rotary, window
        self.attention_type: str = block.attention_type

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Run the layer on tokens (N, T, C) with a mask (N, 1, 1, T) that is true where a token may be attended to."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if self.window is not None:
            distance = (positions[:, None] - positions).abs()
            mask = mask & (distance <= self.window) | (distance == 0)  # padding too attends to something: an empty softmax is NaN
        rotations = self.rotary(tokens, positions[None], self.attention_type)
        return self.block(tokens, attention_mask=mask, position_embeddings=rotations)  # type: ignore[no-any-return]


@versioned("masked_norm", 1)
class MaskedNorm(nn.Module):
    """A norm of tokens (N, T, C) after the last encoder layer; padding stays zero.

    Args:
        norm: shared.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens (N, T, C)."""
        return self.norm(tokens).masked_fill(~real_tokens(tokens)[..., None], 0.0)  # type: ignore[no-any-return]


@versioned("relative_block", 1)
class RelativeBlock(nn.Module):
    """A layer of DeBERTa with its own embeddings of relative positions.

    Args:
        block: a layer of transformers, shared, which `own_relative_positions` has given these embeddings.
        conv: a convolution beside the layer, which the first layer of some networks has.
    """

    def __init__(self, block: Any, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.conv = block, conv

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Run the layer on tokens (N, T, C) with a mask (N, 1, 1, T) that is true where a token may be attended to."""
        relative = self.block.rel_norm(self.block.rel_embeddings.weight) if hasattr(self.block, "rel_embeddings") else None
        features: Tensor = self.block(tokens, mask, rel_embeddings=relative)[0]
        return features if self.conv is None else self.conv(tokens, features, mask[:, 0, 0].long())


def own_relative_positions(model: Any) -> None:
    """Give each layer of a DeBERTa its own copy of the embeddings of relative positions, which all layers share; in place.

    A layer can then be frozen, cut off or stored by itself, and the network computes the same.
    """
    encoder = model.encoder
    if not encoder.relative_attention:
        return
    for index, block in enumerate(encoder.layer):
        parts = (encoder.rel_embeddings, getattr(encoder, "LayerNorm", nn.Identity()))
        block.rel_embeddings, block.rel_norm = parts if index == 0 else deepcopy(parts)


def copy_relative_positions(tensors: dict[str, Tensor], layers: int) -> tuple[str, ...]:
    """Copy the tensors that all `layers` of a DeBERTa share to each layer, in place. Returns the names of resized tensors: none."""
    for name, tensor in list(tensors.items()):
        for shared, own in SHARED_TENSORS.items():
            if name.startswith(shared):
                tensors |= {f"encoder.layer.{i}.{own}{name.removeprefix(shared)}": tensor for i in range(layers)}
    return ()


def _modernbert(model: Any) -> list[nn.Module]:
    window = model.config.sliding_window
    return [RotaryBlock(block, model.rotary_emb, window if block.attention_type == "sliding_attention" else None) for block in model.layers]


def _deberta(model: Any) -> list[nn.Module]:
    own_relative_positions(model)
    return [RelativeBlock(block, None if index else model.encoder.conv) for index, block in enumerate(model.encoder.layer)]


BLOCKS: Mapping[str, Callable[[Any], list[nn.Module]]] = {"modernbert": _modernbert, "deberta-v2": _deberta}  # by the type of model
