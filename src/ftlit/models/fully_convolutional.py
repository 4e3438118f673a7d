"""Convert fully connected layers to convolutions: a network then takes images larger than those of its training, and gives a map of logits.

Sermanet et al. 2014 (OverFeat), section 3.5; Long et al. 2015 (Fully convolutional networks), section 3.1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line
from ftlit.identity.code_identity import versioned
from ftlit.models.backbone import Backbone, Layers, run_on_meta
from ftlit.models.batchnorm_fold import AffineNorm
from ftlit.models.heads import head_cuts
from ftlit.plain_arguments import plain_arguments

Size = tuple[int, int]
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.Hardswish, nn.SiLU, nn.Tanh, nn.Dropout, nn.Identity)
ENDS_MAPS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Linear)
NORMS = (nn.BatchNorm2d, AffineNorm, LayerNorm2d)  # exact classes, used on maps unchanged: LayerNorm2d is also an nn.LayerNorm


@plain_arguments
def linear_to_conv(linear: nn.Linear, size: int | Size = 1) -> nn.Conv2d:
    """Convert a linear layer of a flattened map (C, h, w) to a convolution with a kernel of that size.

    Args:
        linear: a layer of C * h * w input features. It is not changed; the convolution has new parameters with the same values, device,
            dtype and `requires_grad`.
        size: (h, w), or one number for both; 1 for a layer of vectors.

    Raises:
        UserError: the number of input features is not a multiple of h * w.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels, rest = divmod(linear.in_features, height * width)
    if rest:
        raise UserError(
            f"a linear layer with {linear.in_features} inputs cannot read a feature map of {height}x{width}, because "
            f"{linear.in_features} is not a multiple of {height * width}: give size=(height, width) of the map that it reads"
        )
    return _conv(linear, linear.weight.detach().view(-1, channels, height, width))


@plain_arguments
def fully_convolutional(backbone: Backbone, head: nn.Module) -> Layers:
    """Build a network from images (N, 3, H, W) of the training size or larger to logits (N, K, h, w) for each window of the training size.

    At the training size the map is 1x1 and has the logits of the original. Averages over the map become averages over windows of the
    training map's size, at stride 1; adaptive pooling to several positions, flattening and the linear layer after it become one
    convolution. At larger sizes a position equals the original network on its window, except for the effects of padding and of modules
    that use the whole image (squeeze-and-excitation, attention); see docs/predict-and-export.md.

    Args:
        backbone: a backbone of images whose features are maps. Modules that compute maps are shared, not copied.
        head: linear, a stack of linear layers and activations, or a head with a method `as_sequence`, as the built-in ones have.

    Raises:
        UserError: a head on several cuts, features that are tokens, a network with a fixed image size, or a module after the last map that
            cannot be converted.
    """
    if not isinstance(backbone.input_spec, InputSpec) or any(len(shape) == 2 for shape in backbone.feature_shapes.values()):
        raise UserError("this backbone gives tokens, but a fully convolutional network needs feature maps: use a convolutional backbone")
    if cuts := head_cuts(head):
        raise UserError(
            f"the head reads {', '.join(cuts)}, but a fully convolutional network needs a head on one layer: train with head.cuts=null"
        )
    layers, shape, above = _below_pooling(backbone)
    takes_map = getattr(head, "takes_map", False)
    pool = [] if above or takes_map else [("pool", nn.AdaptiveAvgPool2d(1))]
    rewrite = _Rewrite((shape[1], shape[2]))
    for name, module in [*above, *pool, ("head", head)]:
        layers.update(rewrite.parts(name, module))
    net = Layers(layers)
    net.training = backbone.training  # each part keeps its own mode
    return net


def _below_pooling(backbone: Backbone) -> tuple[dict[str, nn.Module], tuple[int, ...], list[tuple[str, nn.Module]]]:
    """Separate the modules that compute maps from those above.

    Returns:
        The former by name; the shape of the last map of one image at the training size; the modules above, with their names.
    """
    shapes, (channels, size, _) = backbone.feature_shapes, backbone.input_spec.shape
    maps = [name for name in backbone.cuts if len(shapes[name]) == 3]
    layers = {f"backbone.{name}": backbone.get_submodule(name) for name in maps}
    try:
        if maps:
            backbone.upto(len(maps) - 1).on_meta((channels, 2 * size, 2 * size))
    except Exception as error:
        only = f"this backbone accepts only images of {size} px, so it gives no map of classes"
        raise UserError(f"{only}: use another backbone ({one_line(error)})") from error
    above = [(f"backbone.{name}", layer) for name, layer in backbone.items() if name not in maps]
    shape: tuple[int, ...] = shapes[maps[-1]] if maps else (channels, size, size)
    if above and (sequence := _as_sequence(above[0][1])) is not None:  # a layer that ends with the pooling
        (name, _), *above = above
        inner = [(f"{name}.{part}", module) for part, module in sequence.items()]
        place = next((i for i, (_, module) in enumerate(inner) if isinstance(module, ENDS_MAPS)), 0)
        for part, module in inner[:place]:
            layers[part] = module
            shape = tuple(run_on_meta(module, torch.empty(1, *shape, device="meta")).shape[1:])
        above = [*inner[place:], *above]
    return layers, shape, above


class _Rewrite:
    """The conversion of the modules above the last map, one after the other.

    Args:
        size: of the map at the training size.
    """

    def __init__(self, size: Size) -> None:
        self.size = size  # size of the map of one window
        self.pooled: Size | None = None  # output size of an adaptive pooling before the next linear layer

    def parts(self, name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield (name, module of maps) for a module of vectors."""
        if (rewritten := self._rewritten(module)) is not None:
            yield from ((f"{name}.{i}" if i else name, part) for i, part in enumerate(rewritten))
        elif (sequence := _as_sequence(module)) is not None:
            for inner, part in sequence.items():
                yield from self.parts(f"{name}.{inner}", part)
        else:
            raise UserError(
                f"{name} ({type(module).__name__}) cannot be converted to a convolution; supported heads: linear, mlp, conv, and classes "
                "with a method as_sequence (docs/extending.md)"
            )

    def _rewritten(self, module: nn.Module) -> list[nn.Module] | None:
        """Return equivalent modules of maps, or `None` if the module's children must be converted."""
        if isinstance(module, nn.Flatten):
            return []
        if isinstance(module, ELEMENTWISE):
            return [module]
        if type(module) in NORMS:
            return [module]
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            return [module] if self._keeps_size(module) else None
        if isinstance(module, nn.LayerNorm):
            return [_ChannelNorm(module)]
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            return self._adaptive(module)
        return self._linear(module) if isinstance(module, nn.Linear) else None

    def _keeps_size(self, module: nn.Conv2d | nn.MaxPool2d) -> bool:
        """Whether the output map has the size of the input map."""
        channels = module.in_channels if isinstance(module, nn.Conv2d) else 1
        try:
            return run_on_meta(module, torch.empty(1, channels, *self.size, device="meta")).shape[2:] == self.size
        except RuntimeError:  # a window larger than the map
            return False

    def _adaptive(self, pool: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) -> list[nn.Module] | None:
        out: Any = pool.output_size
        wanted = (out, out) if isinstance(out, int) else tuple(out)
        if isinstance(pool, nn.AdaptiveMaxPool2d) and wanted != (1, 1):
            return None
        if wanted == (1, 1):
            size, self.size = self.size, (1, 1)
            return [nn.MaxPool2d(size, 1) if isinstance(pool, nn.AdaptiveMaxPool2d) else nn.AvgPool2d(size, 1)]
        self.pooled = wanted  # merged into the next linear layer
        return []

    def _linear(self, linear: nn.Linear) -> list[nn.Module]:
        size, pooled, self.size, self.pooled = self.size, self.pooled or self.size, (1, 1), None
        conv = linear_to_conv(linear, pooled)
        if pooled == size:
            return [conv]
        rows, columns = (_averages(n, m).to(conv.weight) for n, m in zip(size, pooled, strict=True))
        return [_conv(linear, torch.einsum("kcop,oh,pw->kchw", conv.weight.detach(), rows, columns))]


@versioned("channel_norm", 1)
class _ChannelNorm(nn.Module):
    """A layer norm of vectors (N, C), applied at each position of a map (N, C, H, W)."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


def _as_sequence(module: nn.Module) -> Mapping[str, nn.Module] | None:
    """Return modules that compute the same one after the other; `None` if they are not known.

    They are known if the class that defines `forward` has them: a subclass with another `forward` may compute something else.
    """
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    if owner is nn.Sequential:  # not `named_children`, which leaves out repetitions of a module
        return {name: child for name, child in module._modules.items() if child is not None}
    return module.as_sequence() if "as_sequence" in vars(owner) else None  # type: ignore[operator]


def _averages(length: int, positions: int) -> Tensor:
    """Return the matrix (positions, length) of adaptive average pooling from `length` values to `positions`."""
    return nn.functional.adaptive_avg_pool1d(torch.eye(length)[:, None], positions)[:, 0].T


def _conv(linear: nn.Linear, weight: Tensor) -> nn.Conv2d:
    out, channels, *size = weight.shape
    conv = nn.Conv2d(channels, out, (size[0], size[1]), bias=linear.bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.weight.requires_grad_(linear.weight.requires_grad)
        if conv.bias is not None:
            conv.bias.copy_(linear.bias)
            conv.bias.requires_grad_(linear.bias.requires_grad)
    return conv.train(linear.training)
