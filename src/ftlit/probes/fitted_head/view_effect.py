"""Try an augmentation on features: a probe that is fitted on augmented images, against one of plain images, both judged on plain images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from ftlit.features.extract import Features
from ftlit.probes.fitted_head.head_probe import HeadProbe
from ftlit.probes.l2_search import held_out_results
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.linear_probe import L2_PENALTIES
from ftlit.probes.probe_inputs import read_examples
from ftlit.probes.probe_kinds import PROBE_KINDS

MIN_ERRORS = 3.0  # standard errors by which the loss must be higher; measured, see docs/scenarios.md


@dataclass(frozen=True)
class ViewEffect:
    """Mean loss of two linear probes on plain images that were held out, in the same folds.

    Args:
        augmented: of the probe that is fitted on an augmented view of each image.
        plain: of the probe that is fitted on the images as they are.
        standard_error: of the difference, paired by image; images of one group (see `Features`) count as one.
    """

    augmented: float
    plain: float
    standard_error: float

    @property
    def is_worse(self) -> bool:
        """Whether the loss is clearly higher with the augmentation."""
        return self.augmented - self.plain > MIN_ERRORS * self.standard_error


def effect_of_views(probing: LayerProbes, fitted: HeadProbe, features: Features, view: Features, cut: str) -> ViewEffect | None:
    """Compare the images with an augmented view of them, as data to fit a softmax probe of one cut on.

    A view that is added to the plain images hurts a probe too little to be noticed, even where a mirrored image has another label; so one
    probe has the view only. The two cross-validations take less time than that of the head, which has the vectors of both.

    Args:
        probing: L2 penalties to try, and the seed of the folds.
        fitted: the head, with its class weights.
        features: of the plain images.
        view: of the same images, augmented.
        cut: that both have.

    Returns:
        `None` where nothing is held out, because there is a single L2 penalty, and where all images are of one group, which leaves no
        standard error.
    """
    penalties = sorted(map(float, probing.l2 or L2_PENALTIES), reverse=True)
    if len(penalties) < 2:
        return None
    (examples, classes), (augmented, _) = (read_examples(own, features.targets, [cut], (), None, None) for own in (features, view))
    kind = PROBE_KINDS["softmax"].with_weights(fitted.parts[0].class_weights)
    found = [held_out_results(examples, None, classes, penalties, kind, probing.seed, fitted_on)[1] for fitted_on in (augmented, None)]
    losses = [held_out.losses[held_out.losses.mean(dim=1).argmin()] for held_out in found]
    groups = features.groups and [features.groups[place] for place in found[0].places.tolist()]
    if groups and None not in groups and len(set(groups)) < 2:
        return None
    of_view, of_plain = (float(own.mean()) for own in losses)
    return ViewEffect(of_view, of_plain, standard_error(losses[0] - losses[1], groups))


def standard_error(values: Tensor, groups: Sequence[str | None] | None = None) -> float:
    """The standard error of the mean of values (M,), of which those of one group are not independent.

    Args:
        values: float64.
        groups: name of the group of each value, `None` for one without; `None`: no groups.
    """
    numbers: dict[object, int] = {}
    keys = range(len(values)) if groups is None else [place if group is None else group for place, group in enumerate(groups)]
    units = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    sums = torch.zeros(len(numbers), dtype=values.dtype).index_add(0, units, (values - values.mean()).cpu())
    return sqrt(float(sums.square().sum()) * len(sums) / max(1, len(sums) - 1)) / len(values)
