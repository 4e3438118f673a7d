"""A backbone that holds statistics but says that its weights are random: `auto` would lose the statistics, so there is a warning."""

import warnings

import pytest
import torch
from staged_net import Net, fit
from torch import nn

from ftlit import Backbone, Schedule, Stage, WeightsOrigin
from ftlit.data.input_spec import InputSpec
from ftlit.lit.stages.stage_checks import STATISTICS_OF_RANDOM_ORIGIN

SCHEDULE = Schedule([Stage(["head"]), Stage(["*"], epoch=1)])


class WithBackbone(Net):
    """A net whose two layers are a backbone, trained for some steps before, or not."""

    def __init__(self, trained, **origin):
        super().__init__()
        layers = dict(self.body.items())
        self.body = Backbone(layers, InputSpec(8), **origin)
        if trained:
            for _ in range(3):
                self.body(torch.randn(16, 4))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])


def warned(model, schedule=SCHEDULE, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(2, model=model, schedule=schedule, **settings)
    return [str(one.message) for one in caught if str(one.message) == STATISTICS_OF_RANDOM_ORIGIN]


def test_statistics_that_auto_would_lose_are_reported_once():
    [message] = warned(WithBackbone(trained=True))
    assert 'origin=WeightsOrigin("custom", name)' in message and 'batchnorm="live"' in message


@pytest.mark.parametrize("policy", ["live", "frozen_stats", "frozen", {"body": "live"}])
def test_a_given_policy_is_not_questioned(policy):
    assert not warned(WithBackbone(trained=True), Schedule([Stage(["*"], batchnorm=policy)]))


def test_weights_with_an_origin_initial_statistics_and_a_frozen_backbone_are_as_they_should_be():
    assert not warned(WithBackbone(trained=True, origin=WeightsOrigin("custom", "mine")))
    assert not warned(WithBackbone(trained=False))
    assert not warned(WithBackbone(trained=True), Schedule([Stage(["head"])]))


@pytest.mark.parametrize("late", [False, True])
def test_statistics_of_the_same_training_are_not_reported(tmp_path, late):
    class Late(WithBackbone):
        def configure_model(self):
            pass

    kind = Late if late else WithBackbone
    assert not warned(kind(trained=False), folder=tmp_path)
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=1)])
    assert not warned(kind(trained=True), schedule, ckpt_path=tmp_path / "0.ckpt")
