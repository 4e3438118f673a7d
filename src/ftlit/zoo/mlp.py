"""A small network of fully connected layers, for the classic road of deep belief networks."""

from collections.abc import Sequence

from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Layers
from ftlit.zoo.blocks import named

INPUT_SPEC = InputSpec(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def build(*, size: int, hidden: Sequence[int] = (512, 256, 128), activation: str = "relu") -> Layers:
    """Images (N, 3, size, size) -> features (N, hidden[-1]) through `layer1`, `layer2`, ..., each linear and an activation, at random.

    Raises `UserError` for no layer, a width below 1, or an unknown activation.
    """
    if not hidden or any(width < 1 for width in hidden) or activation not in ACTIVATIONS:
        raise UserError(
            f"mlp with hidden {list(hidden)} and activation {activation!r}: widths of at least 1, and {' or '.join(ACTIVATIONS)}"
        )
    layers: dict[str, nn.Module] = {}
    width = 3 * size * size
    for i, wider in enumerate(hidden, 1):
        flatten = {"flatten": nn.Flatten(1)} if i == 1 else {}
        layers[f"layer{i}"] = named(**flatten, linear=nn.Linear(width, wider), activation=ACTIVATIONS[activation]())
        width = wider
    return Layers(layers)
