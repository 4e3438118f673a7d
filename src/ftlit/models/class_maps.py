"""Class activation maps: which positions of an image the logits of a linear head come from."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ftlit.models.backbone import Backbone
from ftlit.models.heads import LinearHead, LinearProbeHead, head_cuts


def logit_difference_maps(backbone: Backbone, head: torch.nn.Module, x: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
    """By how much the logit of one class exceeds that of another, position by position; `None` where the logits are no sum over positions.

    A linear head on averaged maps is linear in each position (Zhou et al. 2016, "Learning deep features for discriminative localization",
    section 2): the mean of a map here and the difference of the biases are exactly the difference of the logits. Of two classes, because
    the logit of one alone means nothing: the same number may be added to all.

    Args:
        backbone: of images.
        head: a `LinearHead` of one or several cuts, other than an average of probabilities.
        x: images (N, C, H, W).
        first: class numbers (N,).
        second: class numbers (N,).

    Returns:
        (N, h, w) float32, of the largest map that the head reads; smaller ones are interpolated, which keeps their mean.
    """
    if not isinstance(head, LinearHead) or type(head) not in (LinearHead, LinearProbeHead) or head.combine == "average":
        return None  # a class of the user's may compute something else
    cuts = head_cuts(head)
    features: list[Tensor] = backbone.features_at(x, cuts) if cuts else [backbone(x)]
    if any(values.ndim != 4 for values in features):
        return None
    weights = torch.split((head.weight[first] - head.weight[second]).float(), head.widths, dim=1)
    maps = [torch.einsum("nc,nchw->nhw", own, values.float()) for own, values in zip(weights, features, strict=True)]
    size = max((own.shape[1:] for own in maps), key=torch.Size.numel)
    return torch.stack([_enlarged(own, size) for own in maps]).sum(dim=0)


def _enlarged(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps (N, h, w) at another size, with the mean of each as it was."""
    large = interpolate(maps[:, None], size=list(size), mode="bilinear")[:, 0]
    return large + (maps.mean(dim=(1, 2)) - large.mean(dim=(1, 2)))[:, None, None]
