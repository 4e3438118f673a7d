"""The learning-rate range test: suggestions on curves with a known steepest point, recorded losses, and the recipe from config to files."""

import csv
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hydra import compose
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from ftlit import Rates, Schedule, Stage, Until, UserError
from ftlit.finetuning.lr_range_test import RangeTest, Suggestion, diverged, smooth, suggest
from ftlit.finetuning.lr_schedule import constant
from ftlit.lit.callbacks.loss_by_lr import LossByRate
from ftlit.recipes import lr_find
from ftlit.recipes.config.hydra_internals import fresh_hydra


def grid(steps, least=1e-6, most=10.0):
    return [least * (most / least) ** (i / (steps - 1)) for i in range(steps)]


def valley(rates, fall=1e-3, rise=1.0):
    """Return losses that fall around the rate `fall`, as a logistic curve of its logarithm, and rise from `rise` on."""
    return [2.3 - 2 * r / (r + fall) + (r / rise) ** 2 for r in rates]


@pytest.mark.parametrize("fall", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_the_steepest_rate_is_found_without_lag_for_any_number_of_steps(fall, steps):
    rates = grid(steps)
    assert fall / 1.4 < suggest(rates, valley(rates, fall)).steep < fall * 1.4


def test_the_second_suggestion_is_a_tenth_of_the_rate_at_the_minimum():
    rates = grid(200)
    losses = [1 + (torch.tensor(r).log10() + 2).item() ** 2 for r in rates]
    suggestion = suggest(rates, losses)
    assert suggestion.tenth == pytest.approx(1e-3, rel=0.1) and not suggestion.open_ended(probe_head=False)


def test_suggestions_scale_with_the_rates_and_ignore_scale_and_offset_of_the_loss():
    rates, noise = grid(100), torch.randn(100, generator=torch.Generator().manual_seed(0)) * 0.1
    losses = [a + b for a, b in zip(valley(rates), noise.tolist(), strict=True)]
    suggestion = suggest(rates, losses)
    scaled = suggest([8 * r for r in rates], [4 * loss + 1 for loss in losses])
    assert (scaled.steep, scaled.tenth) == pytest.approx((8 * suggestion.steep, 8 * suggestion.tenth))
    assert rates[0] <= suggestion.steep <= rates[-1]


def test_smoothing_keeps_constants_reduces_noise_and_ends_with_the_exponential_average():
    rates, noise = grid(100), torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.allclose(smooth(rates, [2.0] * 100), torch.full((100,), 2.0, dtype=torch.float64))
    assert smooth(rates, noise).std() < 0.5 * torch.tensor(noise).std()
    beta = float(torch.exp(-(torch.tensor(rates[1] / rates[0]).log()) / (0.3 * torch.tensor(10.0).log())))
    average = 0.0
    for loss in noise:
        average = beta * average + (1 - beta) * loss
    assert smooth(rates, noise)[-1].item() == pytest.approx(average / (1 - beta**100), rel=1e-4)


@pytest.mark.parametrize("fall", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("exploding", [1, 3])
def test_suggestions_do_not_depend_on_how_hard_the_last_steps_explode(fall, exploding):
    rates = [rate for rate in grid(100) if rate < 0.5]
    noise = torch.randn(len(rates), generator=torch.Generator().manual_seed(0)) * 0.02
    losses = [a + b for a, b in zip(valley(rates, fall), noise.tolist(), strict=True)]
    suggestions = {suggest(rates, losses[:-exploding] + [factor] * exploding) for factor in (10.0, 1e3, 1e6, 1e30)}
    (suggestion,) = suggestions
    assert fall / 2 < suggestion.steep < fall * 2
    assert suggestion.steep == suggest(rates[:-exploding], losses[:-exploding]).steep


def test_a_loss_of_four_times_the_best_has_diverged():
    rates = grid(100)
    assert not diverged(rates, valley(rates, rise=10.0)) and not diverged(rates[:1], [5.0])
    assert diverged(rates, valley(rates, rise=1.0))


def test_a_loss_that_still_falls_at_the_last_rate_is_open_ended():
    rates = grid(50, most=1e-2)
    assert suggest(rates, valley(rates)).open_ended(probe_head=False)


def test_a_loss_that_never_falls_is_a_user_error():
    rates = grid(20)
    suggestion = suggest(rates, [1.0 + i for i in range(20)])
    with pytest.raises(
        UserError,
        match=r"never falls as the learning rate goes from 1.0e-06 to 1.0e\+01: give a smaller lr_find.least, or more lr_find.steps",
    ):
        lr_find.choose_rate(suggestion, rates, probe_head=False)


def test_for_a_probe_head_a_tenth_of_the_rate_at_which_the_loss_starts_to_rise_is_chosen():
    rates = grid(100, most=0.3)
    flat = [0.01 * (1 + (rate / 0.1) ** 2) for rate in rates]
    assert 0.003 < lr_find.choose_rate(suggest(rates, flat), rates, probe_head=True) < 0.03
    rates = grid(100, least=1e-2)
    with pytest.raises(UserError, match=r"the loss already rises at the lowest learning rates: give a smaller lr_find\.least"):
        lr_find.choose_rate(suggest(rates, [100.0**i for i in range(100)]), rates, probe_head=True)


@pytest.mark.parametrize(
    ("suggested", "alternative", "configured", "preferred"),
    [
        (2e-3, 5e-3, 1e-2, None),  # all within a factor of ten of the suggestion
        (8e-4, 1e-3, 1e-2, "the configured optimizer.lr=0.01 is the safer choice,"),  # the loss is lowest at 1e-2
        (8e-4, 9e-4, 1e-2, "the suggested optimizer.lr=0.0008 is the safer choice,"),  # at the configured rate it rises again
        (1.5e-2, 2e-3, 1e-3, "the suggested optimizer.lr=0.015 is the safer choice,"),
        (9e-4, 1.0, 2e-3, "the configured optimizer.lr=0.002 is the safer choice,"),  # the alternative is a thousand times higher
    ],
)
def test_of_rates_that_are_far_apart_the_highest_at_which_the_loss_falls_is_preferred(suggested, alternative, configured, preferred):
    text = lr_find.prefer(suggested, Suggestion(suggested, alternative, alternative, 10.0), configured)
    assert preferred in text if preferred else not text
    assert not preferred or f"-m optimizer.lr={','.join(f'{rate:g}' for rate in sorted((suggested, alternative, configured)))}" in text


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"least": 0.0}, "lr_find.least=0 and lr_find.most=10: give finite numbers with 0 < lr_find.least"),
        ({"least": 1.0, "most": 0.1}, "give finite numbers with 0 < lr_find.least < lr_find.most"),
        ({"most": float("inf")}, "give finite numbers with 0 < lr_find.least < lr_find.most"),
        ({"steps": 9}, "lr_find.steps=9: give a whole number, 10 or more"),
    ],
)
def test_settings_out_of_range_are_errors(given, line):
    with pytest.raises(UserError, match=line):
        RangeTest(**given)


class GivenLosses(LightningModule):
    """A module whose losses are the data."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return batch.mean() + 0 * self.weight.sum()

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.5)
        return {"optimizer": optimizer, "lr_scheduler": Rates(optimizer, constant, steps=9, epochs=1).config}


def recorded(losses, **options):
    record = LossByRate()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[record], **quiet, **options)
    trainer.fit(GivenLosses(), DataLoader(torch.tensor(losses), batch_size=1))
    return record


def test_the_loss_of_a_step_is_the_mean_over_its_batches_also_at_the_end_of_an_epoch():
    record = recorded([1.0, 2.0, 3.0, 4.0, 5.0], accumulate_grad_batches=2)
    assert record.losses == [1.5, 3.5, 5.0] * 2 and record.rates == [1.0] * 6


def test_a_loss_that_is_not_finite_ends_the_test_and_is_not_recorded():
    assert recorded([1.0, 1.0, float("nan"), 1.0]).losses == [1.0, 1.0]


def test_a_loss_that_is_not_finite_at_the_first_step_is_an_error():
    with pytest.raises(UserError, match="the loss is nan in the first step"):
        recorded([float("nan"), 1.0])


def test_a_single_stage_begins_at_epoch_0_with_the_rate_factors_of_the_schedule():
    stages = [
        Stage(["head"]),
        Stage(["a"], epoch=2, until=Until("val/loss", threshold=1.0, mode="min"), from_best=True),
        Stage(["*"], step=99),
    ]
    schedule = Schedule(stages, [("head", 1.0), ("*", 0.1)])
    for index, train in ((0, "head"), (1, "a"), (2, "*"), (-1, "*"), (-3, "head")):
        alone = lr_find.single_stage(schedule, index)
        assert alone.stages == (Stage([train]),) and alone.lr_scale == schedule.lr_scale
    with pytest.raises(UserError, match=r"lr_find.stage=3: this schedule has 3 stages; give from 0 to 2, or from -1 \(the last\) to -3$"):
        lr_find.single_stage(schedule, 3)


class Spy(SGD):
    """Record the rates of each step, and which groups it changes."""

    seen: ClassVar[list] = []

    def step(self, closure=None):
        loss = super().step(closure)
        Spy.seen.append({group["name"]: (group["lr"], any(p.grad is not None for p in group["params"])) for group in self.param_groups})
        return loss


def composed(folder, *overrides):
    with fresh_hydra():
        return compose("train", overrides=["recipe=lr_find", "trainer=cpu", f"paths.run={folder}", *overrides])


@pytest.mark.e2e
def test_the_recipe_keeps_the_ratio_between_groups_at_every_step_and_writes_its_files(tmp_path, capsys):
    """An epoch has two batches, which are one step: the loader is read many times."""
    Spy.seen.clear()
    short = [
        "data.batch_size=16",
        "trainer.limit_train_batches=2",
        "trainer.accumulate_grad_batches=2",
        "lr_find.steps=30",
        "lr_find.most=1.0",
    ]
    spied = composed(tmp_path / "run", "optimizer=sgd", f"optimizer._target_={__name__}.Spy", *short)
    steep = lr_find.run(spied)
    scales = {"head": 1.0} | {f"backbone.{name}": 0.1 * 0.8**i for i, name in enumerate(("layer4", "layer3", "layer2", "layer1", "stem"))}
    with (tmp_path / "run/lr_find.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert 25 < len(rows) == len(Spy.seen) and [row["rate"] for row in rows] == pytest.approx(grid(30, most=1.0)[: len(rows)])
    for row, groups in zip(rows, Spy.seen, strict=True):
        assert {name: lr for name, (lr, _) in groups.items()} == pytest.approx({name: row["rate"] * by for name, by in scales.items()})
        assert all(moved for _, moved in groups.values())
    assert rows[0]["rate"] <= steep <= rows[-1]["rate"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"suggested: optimizer.lr={steep:.1e} (head at {steep:.1e}, backbone.layer4 at ")
    assert sorted(path.name for path in Path(tmp_path / "run").iterdir()) == ["lr_find.csv", "lr_find.png"]
    assert (tmp_path / "run/lr_find.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.e2e
def test_only_the_given_stage_trains_and_is_listed_and_the_seed_determines_the_losses(tmp_path, capsys):
    Spy.seen.clear()
    short = [
        "debug=fast",
        "lr_find.steps=12",
        "lr_find.least=1e-3",
        "lr_find.stage=0",
        "head=linear",
        "optimizer=sgd",
        f"optimizer._target_={__name__}.Spy",
    ]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        lr_find.run(composed(tmp_path / name, *short, f"seed={seed}"))
    assert {name for groups in Spy.seen for name, (_, moved) in groups.items() if moved} == {"head"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("suggested: ")]
    assert len(lines) == 3 and all("(head at " in line and "backbone." not in line for line in lines)
    a, b, c = ((tmp_path / name / "lr_find.csv").read_text() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("resume=true", "leave resume=true out"),
        ("lr_find.steps=many", "a whole number"),
        ("lr_find.stage=2", "has 1 stage; give 0, or leave it out"),
    ],
)
def test_a_wrong_setting_is_an_error_before_training(tmp_path, override, line):
    with pytest.raises(UserError, match=line):
        lr_find.run(composed(tmp_path, override))
