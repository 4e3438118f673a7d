"""Heads that name their cuts train from stored features as from images: several cuts, and one below the top."""

from functools import partial

import pytest
import torch
from feature_runs import ALL, HEAD, TOP, data, distance, fit, layer

from ftlit import Backbone, FeatureData, FineTuner, InputSpec, Stage
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import specs_of
from ftlit.models.heads import LinearHead

LAYERS = {"low": (3, 4), "middle": (4, 5), "top": (5, 6)}
WIDTHS = {cut: out for cut, (_, out) in LAYERS.items()}
CUTS = [("low", "top"), ("low", "middle", "top"), ("low", "middle"), ("middle",)]


def model(cuts, combine="concat"):
    torch.manual_seed(0)
    backbone = Backbone({name: layer(*sizes) for name, sizes in LAYERS.items()}, InputSpec(size=12))
    head = LinearHead([WIDTHS[cut] for cut in cuts], 3, cuts=cuts, combine=combine)
    return FineTuner(backbone, head, num_classes=3, optimizer=partial(torch.optim.AdamW, lr=0.02))


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("combine", ["concat", "average"])
@pytest.mark.parametrize("stages", [[Stage(HEAD)], [Stage(HEAD), Stage(TOP, epoch=1), Stage(ALL, epoch=3)]], ids=["head", "all"])
def test_training_from_features_equals_training_from_images(tmp_path, cuts, combine, stages):
    from_images, trainer, _ = fit(data(), stages, module=model(cuts, combine), precision="64-true")
    source = FeatureData(data(), tmp_path, pooled=True)
    from_features, other, passes = fit(source, stages, module=model(cuts, combine), precision="64-true")
    assert distance(from_features, from_images) < 1e-8
    assert passes.epochs[0] == cuts[-1] and passes.images["low"] >= 22
    runs = ((trainer, from_images, data()), (other, from_features, source))
    scores = [each.test(module, images, verbose=False)[0] for each, module, images in runs]
    assert scores[0] == pytest.approx(scores[1])


@pytest.mark.parametrize(
    ("trained", "cuts", "expected"),
    [
        ((), ("low", "top"), [("low", "average"), ("top", "average")]),
        ((), ("low", "middle"), [("low", "average"), ("middle", "average")]),
        (("top",), ("low", "top"), [("low", "average"), ("middle", None)]),
        (("top",), ("low", "middle"), [("low", "average"), ("middle", "average")]),
        (("middle",), ("middle", "top"), [("low", None)]),
        (("low",), ("low", "top"), []),
        ((), (), [("top", "average")]),
    ],
)
def test_a_stage_reads_the_cuts_of_the_head_pooled_and_the_frozen_layers_at_their_top(trained, cuts, expected):
    backbone = Backbone({name: layer(*sizes) for name, sizes in LAYERS.items()}, InputSpec(size=12))
    assert specs_of(backbone, trained, pooled=True, head_cuts=cuts) == tuple(FeatureSpec(*spec) for spec in expected)
    maps = [FeatureSpec(cut, None) for cut, _ in expected]
    assert specs_of(backbone, trained, pooled=False, head_cuts=cuts) == tuple(maps)
