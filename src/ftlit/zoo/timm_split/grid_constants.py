"""Blocks of timm networks that take more than features: rotary positions, or a position bias that all blocks share.

These arguments are constants of the grid of patches. The code of the network before its blocks computes them, so a block asks this code.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.identity.code_identity import versioned
from ftlit.models.backbone import run_on_meta
from ftlit.zoo.timm_split.timm_partial import PartialForward, with_modules
from ftlit.zoo.timm_split.timm_trace import ModuleCall, equal, split_arguments


@versioned("square_images", 1)
class SquareImages(nn.Module):
    """A check in front of blocks that know only the number of tokens of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the images. Raises `RuntimeError` unless height and width are equal."""
        if x.shape[-1] != x.shape[-2]:
            raise RuntimeError(f"this network takes square images only, not {x.shape[-2]}x{x.shape[-1]}")
        return x


@versioned("grid_constants", 1)
class WithGridConstants(nn.Module):
    """A block with its other arguments, as they are in evaluation mode: features -> features.

    They are stored as buffers for one image size. For other sizes, and if they depend on parameters, the code before the blocks computes
    them in each pass, from a blank image. These parameters belong to the layer of that code, which is not a submodule here: they train
    with that layer, and move to another device with it.

    Args:
        block: the module.
        name: its path in the network.
        before: the code before the blocks, on images.
        image: shape (C, S, S) of an image.
        features: shape of its features in front of the block.
        constants: the other arguments for such an image, by name.
    """

    def __init__(
        self, block: nn.Module, name: str, before: PartialForward, image: torch.Size, features: torch.Size, constants: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.block = block
        self.name = name
        self.before = (before,)  # in a tuple, so that its parameters stay those of another layer
        self.image = image
        self.features = features
        tensors = {key: value for key, value in constants.items() if isinstance(value, Tensor)}
        self.plain = {key: value for key, value in constants.items() if key not in tensors}
        self.changing = any(tensor.requires_grad for tensor in tensors.values()) or not all(map(_is_plain, self.plain.values()))
        self.stored = () if self.changing else tuple(tensors)
        for key in self.stored:
            self.register_buffer(f"constant_{key}", tensors[key], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block. Raises `RuntimeError` for tokens that are no square grid, and for maps of another size than the stored one."""
        if self.changing or x.shape[1:] != self.features:
            blank = x.new_zeros(1, *self._image_of(x.shape[1:]))
            constants = other_arguments({self.name: self.block}, self.before[0], blank)[self.name]
        else:
            constants = self.plain | {key: self.get_buffer(f"constant_{key}") for key in self.stored}
        features: Tensor = self.block(x, **constants)
        return features

    def _image_of(self, features: torch.Size) -> torch.Size:
        """Shape of an image with features of this shape."""
        if features == self.features:
            return self.image
        prefix = getattr(self.before[0].model, "num_prefix_tokens", 0)
        here, stored = features[0] - prefix, self.features[0] - prefix
        if len(features) != 2 or isqrt(here) ** 2 != here or isqrt(stored) ** 2 != stored:
            raise RuntimeError(f"{self.name} takes features of images of {self.image[-1]} px only")
        size = round(self.image[-1] * isqrt(here) / isqrt(stored))
        return torch.Size((self.image[0], size, size))


class _Recorder(nn.Module):
    """Stands for a block, and keeps the arguments that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append((args, kwargs))
        features: Tensor = args[0]
        return features


def other_arguments(blocks: Mapping[str, nn.Module], before: PartialForward, images: Tensor) -> dict[str, dict[str, Any]]:
    """The other arguments of blocks, by the path of the block and the name of the argument, as the code before them computes them."""
    recorders = {name: _Recorder() for name in blocks}
    code = PartialForward(with_modules(before.model, recorders), *before.methods)
    if images.is_meta:
        run_on_meta(code, images)
    else:
        code(images)
    return {name: split_arguments(block, *recorders[name].calls[0])[1] for name, block in blocks.items()}


def with_grid_constants(calls: Sequence[ModuleCall], before: PartialForward, images: Tensor) -> dict[str, WithGridConstants]:
    """Bind the other arguments of the blocks of `calls` to them.

    Args:
        calls: of blocks with other arguments, in a forward pass on `images`.
        before: the code before the blocks.
        images: any images.

    Returns:
        Path of a block -> the block with its constants.

    Raises:
        ValueError: the code before the blocks gives other arguments for other images, or other shapes in training mode, as patch dropout
            does.
    """
    blocks = {call.name: call.module for call in calls}
    blank = torch.zeros_like(images[:1])
    with torch.enable_grad():
        constants = other_arguments(blocks, before, blank)
    in_training = other_arguments(blocks, deepcopy(before).train(), blank)
    bound = {}
    for call in calls:
        found = constants[call.name]
        if not equal(found, call.others):
            raise ValueError(f"{call.name} takes {', '.join(call.others)}, which the code before it does not compute from the image size")
        if _shapes(found) != _shapes(in_training[call.name]):
            raise ValueError(f"{call.name} takes {', '.join(found)} of another shape in training mode")
        if call.argument is not None:
            bound[call.name] = WithGridConstants(call.module, call.name, before, images.shape[1:], call.argument.shape[1:], found)
    return bound


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else value is None or isinstance(value, bool | int | float | str)


def _shapes(constants: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.shape if isinstance(value, Tensor) else value for key, value in constants.items()}
