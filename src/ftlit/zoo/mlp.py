"""A small network of fully connected layers, for layer-wise pretraining as in deep belief networks."""

from collections.abc import Sequence

from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Layers
from ftlit.zoo.blocks import sequential

INPUT_SPEC = InputSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def build(*, size: int, channels: int = 3, hidden: Sequence[int] = (512, 256, 128), activation: str = "relu") -> Layers:
    """Build the network with random weights: images (N, channels, size, size) -> features (N, hidden[-1]).

    The layers are `layer1`, `layer2`, ...: each a linear layer and an activation.

    Raises:
        UserError: no layer, a width below 1, or an unknown activation.
    """
    if not hidden or any(width < 1 for width in hidden) or activation not in ACTIVATIONS:
        raise UserError(
            f"mlp with hidden={list(hidden)} and activation={activation!r}: give at least one hidden width, each of 1 or more, "
            f"and the activation {' or '.join(ACTIVATIONS)}"
        )
    layers: dict[str, nn.Module] = {}
    in_features = channels * size * size
    for i, out_features in enumerate(hidden, 1):
        flatten = {"flatten": nn.Flatten(1)} if i == 1 else {}
        layers[f"layer{i}"] = sequential(**flatten, linear=nn.Linear(in_features, out_features), activation=ACTIVATIONS[activation]())
        in_features = out_features
    return Layers(layers)
