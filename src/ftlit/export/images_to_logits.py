"""The network of a run as one module, images -> logits, and its variants: with the preparation of images, or with weights of 16 bits."""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ftlit.export.preparation import Preparation
from ftlit.inference.head_checks import check_width
from ftlit.inference.network import Network
from ftlit.models.heads import features_for, logits_of


@dataclass(frozen=True)
class Variant:
    """Options of an exported file.

    Args:
        preprocessing: the file takes images of 8 bits of any size, and resizes and crops them itself.
        half: its weights are stored in float16; it computes in float32.
    """

    preprocessing: bool = False
    half: bool = False


class ImagesToLogits(nn.Module):
    """Images -> logits (N, K): normalisation, backbone and head of a run in one module.

    Args:
        network: of images; its modules are shared, not copied.
        preprocessing: images are of 8 bits (N, 3, H, W) and of any size. Otherwise they are (N, C, size, size), RGB or grey in [0, 1], or
            bands.

    Raises:
        UserError: see `Preparation`.
    """

    def __init__(self, network: Network, *, preprocessing: bool = False) -> None:
        super().__init__()
        self.preparation = Preparation(network.input_spec) if preprocessing else nn.Identity()
        self.backbone, self.head = network.backbone, network.head
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(network.input_spec, name))[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K)."""
        normalised = (self.preparation(images) - self.mean) / self.std
        features = features_for(self.head, self.backbone, normalised)
        check_width(self.head, features)
        return logits_of(self.head, features)


class HalfWeights(nn.Module):
    """A module whose parameters are stored in float16 and converted to float32 where they are used; buffers stay as they are.

    Args:
        module: is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.half()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """What the module returns."""
        weights = {name: parameter.float() for name, parameter in self.module.named_parameters()}
        found: Tensor = functional_call(self.module, weights, (images,))
        return found


def module_of(network: Network, variant: Variant) -> nn.Module:
    """The module that a file of this variant holds."""
    module = ImagesToLogits(network, preprocessing=variant.preprocessing)
    return HalfWeights(module) if variant.half else module


def random_images(network: Network, count: int, variant: Variant | None = None) -> Tensor:
    """Images that a file of this variant takes, the same at every call: (count, C, S, S) in [0, 1], of bands within two standard deviations
    of their means; with preprocessing uint8 of another size for each count.
    """
    spec, generator = network.input_spec, torch.Generator().manual_seed(count)
    if variant is not None and variant.preprocessing:
        size = (spec.size + 10 * count, 2 * spec.size + 7)
        return torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    images = torch.rand(count, *spec.shape, generator=generator)
    if not spec.takes_bands:
        return images
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return mean + std * (4 * images - 2)
