"""Heads: features -> logits. A head is any module that is built by `(in_features, num_classes)`.

It takes vectors (N, in_features), pooled as the backbone pools, or, where it has an attribute `takes_map = True`, the features as
they come out at the cut. A head with an attribute `cuts`, names of layers, takes an argument for each of them. `fully_convolutional`
converts a head whose class has a method `as_sequence()`: the modules, by name, that compute the same as `forward` one after the other.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from ftlit.errors import UserError, invalid
from ftlit.formatting import count
from ftlit.identity.code_identity import versioned
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.pooling import Pooling, pool, real_tokens
from ftlit.models.precision import without_autocast
from ftlit.registry import Registry

Combine = Literal["concat", "average", "blend"]
COMBINES: tuple[Combine, ...] = get_args(Combine)
HEADS: Registry[Callable[..., nn.Module]] = Registry("head")  # by the names that checkpoints record


def features_for(head: nn.Module, backbone: Backbone, x: Tensor | FeatureBatch) -> list[Tensor]:
    """The features that `head` reads, in one pass of the backbone: those at its `cuts`, or at the last cut; pooled to vectors (N, C) as the
    backbone pools, for a head that takes maps as they come out.
    """
    cuts = head_cuts(head)
    found = backbone.features_at(x, cuts) if cuts else [backbone(x)]
    return found if getattr(head, "takes_map", False) else [backbone.pool(values) for values in found]


def head_cuts(module: nn.Module) -> tuple[str, ...]:
    """The cuts that the head inside `module` names; none: it reads the last one."""
    named = (getattr(part, "cuts", ()) for part in module.modules() if not isinstance(part, Layers))
    return next(
        (tuple(cuts) for cuts in named if isinstance(cuts, list | tuple) and cuts and all(isinstance(cut, str) for cut in cuts)), ()
    )


def logits_of(head: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """Logits (N, num_classes) of features from `features_for`.

    A head computes in the format of its own weights, float32 under mixed precision: a fitted probe then gives the logits of its fit.
    """
    dtype = next(head.parameters(), features[0]).dtype
    with without_autocast(features[0].device.type):
        return head(*(values.to(dtype) for values in features))  # type: ignore[no-any-return]


@HEADS.register("linear")
@versioned("linear_head", 1)
class LinearHead(nn.Linear):
    """Vectors (N, in_features) -> logits (N, num_classes) by one linear layer; or vectors of several cuts, one argument for each.

    Args:
        in_features: length of the features; with `cuts` a list, one length for each.
        num_classes: length of the logits.
        cuts: names of the layers whose features it reads, the lowest first; none: the last cut of the backbone.
        combine: of several cuts. `concat` or `blend`: one linear layer on the concatenated features. `average`: a linear layer for each
            cut, and the logits are the logarithm of the mean of their probabilities.

    Attributes:
        weight: (num_classes, sum of in_features).
        bias: (num_classes,), or (cuts x num_classes,) of an average.

    Raises:
        UserError: an unknown `combine`, or other numbers of cuts and lengths.
    """

    def __init__(
        self, in_features: int | Sequence[int], num_classes: int, *, cuts: Sequence[str] = (), combine: Combine = "concat"
    ) -> None:
        widths = [in_features] if isinstance(in_features, int) else list(in_features)
        if combine not in COMBINES:
            raise invalid("head.combine", combine, COMBINES)
        if len(widths) != max(1, len(cuts)):
            accepted = f"a list of {len(cuts)} numbers, one per cut" if len(cuts) > 1 else "one number"
            raise UserError(f"in_features={in_features} does not fit a linear head on {count(max(1, len(cuts)), 'cut')}: give {accepted}")
        super().__init__(sum(widths), num_classes)
        self.widths, self.cuts, self.combine = widths, tuple(cuts), combine
        if combine == "average":
            self.bias = nn.Parameter(self.bias.detach().repeat(len(widths)))

    def forward(self, *features: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        if self.combine != "average":
            return super().forward(features[0] if len(features) == 1 else torch.cat(features, dim=1))
        weights = torch.split(self.weight, self.widths, dim=1)
        outputs = [linear(*own) for own in zip(features, weights, self.bias.view(len(weights), -1), strict=True)]
        return torch.stack(outputs).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(outputs))


@HEADS.register("linear_probe")
@versioned("linear_probe_head", 1)
class LinearProbeHead(LinearHead):
    """A linear head that is fitted as a linear probe before training; see `ftlit.lit.callbacks.probe_head.FitProbeHead`.

    Args:
        in_features: see `LinearHead`.
        num_classes: see `LinearHead`.
        cuts: see `LinearHead`; in a config also the number of the upper layers to read, places (-1 for the last layer), `null` for the
            last layer, or `auto`: `AUTO_CUTS` where the head is only fitted, the last one where training follows.
        combine: see `LinearHead`. A layer that is fitted as `blend` is the mean of two probes, of the last cut alone and of all cuts
            together: where few images cannot tell what the lower layers are good for, it relies more on the last one than `concat`.

    Attributes:
        recorded_as: the head that results, which is what a checkpoint records.
    """

    recorded_as = LinearHead

    def __init__(
        self,
        in_features: int | Sequence[int],
        num_classes: int,
        *,
        cuts: int | Sequence[str | int] | Literal["auto"] | None = None,
        combine: Combine = "concat",
    ) -> None:
        given = () if cuts is None or cuts == "auto" else (cuts,) if isinstance(cuts, int | str) else tuple(cuts)
        names = [cut for cut in given if isinstance(cut, str)]
        if len(names) < len(given):
            raise UserError(f"cuts={cuts} of a linear head: give the names of the layers")
        super().__init__(in_features, num_classes, cuts=names, combine=combine)


def is_linear_probe(target: object) -> bool:
    """Whether a class is that of a linear probe, which is fitted before training; see `LinearProbeHead`."""
    return isinstance(target, type) and issubclass(target, LinearProbeHead)


@HEADS.register("pooled")
@versioned("pooled_head", 1, uses=(pool,))
class PooledHead(nn.Module):
    """Maps (N, C, H, W) or tokens (N, T, C) -> logits (N, num_classes): pooled in another way than by the average, then linear.

    Args:
        in_features: length of the pooled features; see `ftlit.models.pooling.pooled_size`.
        num_classes: length of the logits.
        pooling: see `ftlit.models.pooling.pool`.
    """

    takes_map = True

    def __init__(self, in_features: int, num_classes: int, pooling: Pooling) -> None:
        super().__init__()
        self.pooling, self.linear = pooling, nn.Linear(in_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        return self.linear(pool(features, pooling=self.pooling))  # type: ignore[no-any-return]

    def as_sequence(self) -> dict[str, nn.Module]:
        """The modules that compute the same one after the other."""
        adaptive = nn.AdaptiveMaxPool2d(1) if self.pooling == "max" else nn.AdaptiveAvgPool2d(2 if self.pooling == "2x2" else 1)
        return {"pool": adaptive, "flatten": nn.Flatten(1), "linear": self.linear}


@HEADS.register("mlp")
@versioned("mlp_head", 1)
class MLPHead(nn.Sequential):
    """Vectors (N, in_features) -> logits (N, num_classes) through hidden layers, each linear, ReLU, dropout.

    Args:
        in_features: length of the features.
        num_classes: length of the logits.
        hidden: widths of the hidden layers; any number of them.
        dropout: probability that a hidden value is set to 0, in [0, 1).
    """

    def __init__(self, in_features: int, num_classes: int, *, hidden: Sequence[int] = (256,), dropout: float = 0.2) -> None:
        if not 0 <= dropout < 1 or any(width < 1 for width in hidden):
            raise UserError(
                f"mlp head with hidden={list(hidden)} and dropout={dropout}: give hidden widths of 1 or more, and a dropout of at "
                "least 0 and below 1"
            )
        layers: list[nn.Module] = []
        for before, width in pairwise([in_features, *hidden]):
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear([in_features, *hidden][-1], num_classes))


@HEADS.register("conv")
@versioned("conv_head", 1)
class ConvHead(nn.Module):
    """Maps (N, in_features, H, W) -> logits (N, num_classes): 3x3 convolution, batch norm, ReLU, mean over positions, linear.

    Args:
        in_features: channels of the map.
        num_classes: length of the logits.
        channels: width of the convolution.
        dropout: probability that a pooled value is set to 0, in [0, 1).
    """

    takes_map = True

    def __init__(self, in_features: int, num_classes: int, *, channels: int = 128, dropout: float = 0.0) -> None:
        if not 0 <= dropout < 1 or channels < 1:
            raise UserError(f"conv head with channels={channels} dropout={dropout}: give channels of 1 or more, and dropout in [0, 1)")
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(in_features, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes). Raises `UserError` for features that are not maps."""
        if features.ndim != 4:
            shape = tuple(features.shape[1:])
            given = f"backbone.cut gives features of shape {shape}"
            raise UserError(f"head=conv needs feature maps, but {given}: give backbone.cut=... with a lower layer, or head=linear")
        return self.linear(self.dropout(self.conv(features).mean(dim=(2, 3))))  # type: ignore[no-any-return]

    def as_sequence(self) -> dict[str, nn.Module]:
        """The modules that compute the same one after the other."""
        pooling = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1)}
        return {**dict(self.conv.named_children()), **pooling, "dropout": self.dropout, "linear": self.linear}


@HEADS.register("attention")
@versioned("attention_head", 1)
class AttentionHead(nn.Module):
    """Maps (N, C, H, W) or tokens (N, T, C) -> logits (N, num_classes): a mean of the positions with learned weights, then linear.

    The weights are a softmax of `query` · normalised features / sqrt(C), without padding tokens. The query starts at 0: a plain mean.
    """

    takes_map = True

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.query, self.linear = nn.Parameter(torch.zeros(in_features)), nn.Linear(in_features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, num_classes). Raises `UserError` for vectors."""
        if features.ndim not in (3, 4):
            raise UserError("head=attention needs tokens or maps, not vectors: give backbone.cut=... with a lower layer, or head=linear")
        tokens = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        scores = layer_norm(tokens, tokens.shape[-1:]) @ self.query / math.sqrt(tokens.shape[-1])
        if features.ndim == 3:
            scores = scores.masked_fill(~real_tokens(tokens), torch.finfo(scores.dtype).min)
        return self.linear((scores.softmax(dim=1)[..., None] * tokens).sum(dim=1))  # type: ignore[no-any-return]
