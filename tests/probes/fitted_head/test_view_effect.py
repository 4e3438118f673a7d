"""An augmentation is tried on features: one that changes the label is noticed, one that changes nothing is not, groups count as one."""

from math import sqrt

import pytest
import torch

from ftlit.features.extract import Features
from ftlit.probes.cross_validation import LabelledVectors, cross_validate
from ftlit.probes.fitted_head.head_probe import fit_head
from ftlit.probes.fitted_head.view_effect import MIN_ERRORS, ViewEffect, effect_of_views, standard_error
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.probe_kinds import PROBE_KINDS

LABELS, PROBING = torch.arange(60) % 3, LayerProbes(l2=[1.0, 0.1, 0.01, 1e-3])


class Rows:
    """Feature vectors in memory."""

    def __init__(self, vectors):
        self.vectors, self.shape, self.dtype = vectors, vectors.shape[1:], vectors.dtype

    def __len__(self):
        return len(self.vectors)

    def read(self, places):
        return self.vectors[list(places)]


def features(seed, labels=LABELS, noise=0.5, groups=None):
    """Features (60, 6) that show these labels."""
    vectors = torch.nn.functional.one_hot(labels, 6) + noise * torch.randn(60, 6, generator=torch.Generator().manual_seed(seed))
    return Features({"low": Rows(vectors[:, :2]), "top": Rows(vectors)}, LABELS, groups)


def effect(plain, view, probing=PROBING, **options):
    fitted = fit_head(probing, plain, [view], ["low", "top"], "blend", **options)
    return effect_of_views(probing, fitted, plain, view, "top")


@pytest.mark.parametrize("kind", ["softmax", "svm"])
@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize("seed", range(3))
def test_a_view_that_shows_another_class_is_always_noticed(seed, weights, kind):
    """As a mirrored letter may be another one."""
    view = features(seed + 10, torch.where(LABELS == 0, 1, torch.where(LABELS == 1, 0, 2)))  # two of three classes change places
    found = effect(features(seed), view, LayerProbes(kinds=[kind], l2=PROBING.l2), class_weights=weights)
    assert found.is_worse and found.augmented - found.plain > 0.2


@pytest.mark.parametrize("groups", [None, [f"patient {place // 4}" for place in range(60)]])
def test_a_view_that_equals_the_images_makes_no_difference(groups):
    found = effect(features(0, groups=groups), features(0, groups=groups))
    assert found.augmented == found.plain and found.standard_error == 0 and not found.is_worse


def test_a_view_that_shows_the_same_class_is_not_noticed():
    assert not any(effect(features(seed), features(seed + 50)).is_worse for seed in range(10))


def test_both_probes_are_judged_on_plain_images_that_neither_was_fitted_on_in_any_view():
    """Whatever the views of the first held-out fold show, its results stay the same."""
    plain, view = (features(seed)["top"].vectors for seed in (0, 1))
    options = (3, [0.1], PROBE_KINDS["softmax"], 0)
    examples = LabelledVectors(plain, LABELS, groups=[f"patient {place // 4}" for place in range(60)])
    alone, found = cross_validate(examples, *options), cross_validate(examples, *options, fitted_on=LabelledVectors(view, LABELS))
    assert torch.equal(alone.places, found.places) and not torch.equal(alone.losses, found.losses)
    first = found.places[:4]  # of one patient
    assert len({int(place) // 4 for place in first}) == 1
    other = view.clone()
    other[first] += 100
    changed = cross_validate(examples, *options, fitted_on=LabelledVectors(other, LABELS))
    assert torch.equal(found.logits[0, :4], changed.logits[0, :4]) and not torch.equal(found.logits, changed.logits)


def test_the_standard_error_counts_copies_of_an_image_in_one_group_once():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = standard_error(values)
    assert alone == pytest.approx(float(values.std()) / sqrt(20)) == standard_error(values, [None] * 20)
    assert standard_error(values.repeat(4), [str(place) for place in range(20)] * 4) == pytest.approx(alone)


def test_a_difference_within_chance_is_not_worse():
    assert ViewEffect(0.5, 0.4, 0.09 / MIN_ERRORS).is_worse
    assert not ViewEffect(0.5, 0.4, 0.11 / MIN_ERRORS).is_worse and not ViewEffect(0.3, 0.4, 0.01).is_worse


def test_with_a_single_penalty_nothing_is_held_out_and_nothing_compared():
    assert effect(features(0), features(1), LayerProbes(l2=[0.1])) is None
