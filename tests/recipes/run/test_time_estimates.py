"""Estimates of time: from the seconds of one image; `scenario=auto` recognises a linear probe by the head that is built."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import data, model
from omegaconf import OmegaConf

from ftlit.finetuning.plan import LayerRow, Plan
from ftlit.models.heads import LinearProbeHead, MLPHead
from ftlit.recipes.run.time_estimates import (
    PIXEL_LOADING,
    StageWork,
    _run_seconds,
    costs_of,
    estimate_run,
    has_probe_head,
    seconds_per_image,
)


def make_probe(in_features, num_classes):
    return LinearProbeHead(in_features, num_classes)


def make_for_96_features(in_features, num_classes):
    raise ValueError(f"only 96 features, not {in_features}")


partial_probe = partial(LinearProbeHead)
partial_mlp = partial(MLPHead, hidden=[4])


@pytest.mark.parametrize(
    ("target", "expected"), [("make_probe", True), ("partial_probe", True), ("partial_mlp", False), ("make_for_96_features", False)]
)
def test_the_head_that_a_factory_returns_decides_whether_it_is_a_linear_probe(target, expected):
    torch.manual_seed(0)
    assert has_probe_head(OmegaConf.create({"head": {"_target_": f"{__name__}.{target}"}})) is expected
    numbers = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), numbers)


@pytest.fixture
def timed(monkeypatch):
    """A second for each image of a forward pass, half a second to load one."""
    monkeypatch.setattr("ftlit.recipes.run.time_estimates.seconds_per_image", lambda *_: (0.5, 1.0))
    images = data(15)
    counts = [sum(images.counts[split].values()) for split in ("train", "val", "test")]
    return model(), images, *counts


def rows(network, *modes):
    cuts = network.backbone.cuts
    training = [tuple(int(stage[i] == "train") for stage in modes) for i in range(len(cuts))]
    return [LayerRow(f"backbone.{cut}", 1, 0, numbers, (), (), (), 1) for cut, numbers in zip(cuts, training, strict=True)]


def estimate(network, images, spans, layers, **settings):
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False)
    return estimate_run(
        trainer, network.backbone, images, Plan((), layers, (), ()), spans, [], **{"head_passes": 0, "tests": 1} | settings
    ).whole


def test_epochs_of_full_training_cost_three_forward_passes_and_the_last_pass_is_the_test(timed):
    network, images, train, val, test = timed
    all_train = rows(network, ["train"] * len(network.backbone.cuts))
    assert estimate(network, images, [range(2)], all_train) == pytest.approx(2 * (3 * train + val) + test)


def test_a_frozen_backbone_has_no_backward_pass_and_a_fitted_head_reads_train_and_val_once(timed):
    network, images, train, val, test = timed
    frozen = rows(network, ["eval"] * len(network.backbone.cuts))
    assert estimate(network, images, [range(1)], frozen) == pytest.approx(train + val + test)
    assert estimate(network, images, [], frozen, head_passes=1) == pytest.approx(train + val + test)


def test_of_stages_that_may_share_an_epoch_the_slower_one_counts(timed):
    network, images, *_ = timed
    both = rows(network, ["eval"] * len(network.backbone.cuts), ["train"] * len(network.backbone.cuts))
    assert estimate(network, images, [range(2), range(2)], both) == estimate(network, images, [range(0), range(2)], both)


def test_the_scenarios_are_estimated_as_their_runs_are(timed):
    network, images, train, val, test = timed
    fitted, trained = ({"head": {"_target_": f"{__name__}.{name}"}} for name in ("make_probe", "partial_mlp"))
    rest = {"schedule": {"epoch": 1}, "trainer": {"max_epochs": 3}}
    heads = {"small_similar": fitted, "small_different": trained, "large_similar": fitted, "large_different": trained}
    configs = {name: OmegaConf.create({**head, **rest}) for name, head in heads.items()}
    once = train + val + test
    assert dict(costs_of(network.backbone, images, configs, "32-true")) == {
        "small_similar": once,
        "small_different": once,
        "large_similar": once + 3 * (3 * train + val) + test,  # its linear probe is tested before training
        "large_different": once + 2 * (3 * train + val),
    }
    frozen, whole = (rows(network, [mode] * len(network.backbone.cuts)) for mode in ("eval", "train"))
    assert estimate(network, images, [], frozen, head_passes=1) == once
    assert estimate(network, images, [range(3)], whole, head_passes=1, tests=2) == once + 3 * (3 * train + val) + test


def test_timing_leaves_weights_statistics_modes_and_random_numbers_as_they_are():
    network, images = model().train(), data(15)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes, random_state = [part.training for part in network.modules()], torch.get_rng_state()
    loading, forward = seconds_per_image(network.backbone, images)
    assert loading > 0 and forward > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [part.training for part in network.modules()] == modes and torch.equal(torch.get_rng_state(), random_state)


def test_limits_of_the_trainer_count(timed):
    network, images, *_, test = timed
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, limit_train_batches=1, limit_val_batches=0.0)
    layers = rows(network, ["train"] * len(network.backbone.cuts))
    seconds = estimate_run(trainer, network.backbone, images, Plan((), layers, (), ()), [range(1)], [], head_passes=0, tests=1).whole
    assert seconds == pytest.approx(3 * images.batch_size + test)
    assert estimate_run(trainer, network.backbone, images, Plan((), layers, (), ()), None, [], head_passes=0, tests=1) is None


def test_stored_pixels_are_decoded_once_and_then_read_in_less_time_than_images():
    stages = [StageWork(range(3), 0.0, None, pixels) for pixels in (False, True)]
    images, pixels = (
        _run_seconds((10.0, 1.0), {"train": 10, "val": 5, "test": 0}, [stage], head_passes=0, tests=1).whole for stage in stages
    )
    assert images == 3 * 15 * 10.0 and pixels == pytest.approx(15 * 10.0 + 3 * 15 * 10.0 * PIXEL_LOADING)


def test_the_time_before_training_is_that_of_the_fitted_head_and_its_test():
    training = StageWork(range(2), 0.0, None)
    found = _run_seconds((0.5, 1.0), {"train": 10, "val": 5, "test": 4}, [training], head_passes=3, tests=2)
    assert found == (3 * 15 + 4 + 2 * (3 * 10 + 5) + 4, 3 * 15 + 4)
