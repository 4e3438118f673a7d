"""The range test: its answer on curves whose steepest place is known, its record of a run, and the recipe from config to files."""

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
from ftlit.finetuning.lr_range_test import RangeTest, diverged, smooth, suggest
from ftlit.finetuning.lr_schedule import constant
from ftlit.lit.callbacks.loss_by_lr import LossByRate
from ftlit.recipes import lr_find
from ftlit.recipes.config.hydra_internals import fresh_hydra


def grid(steps, least=1e-6, most=10.0):
    return [least * (most / least) ** (i / (steps - 1)) for i in range(steps)]


def valley(rates, fall=1e-3, rise=1.0):
    """Falls around `fall`, as a logistic curve of the logarithm, and rises from `rise` on."""
    return [2.3 - 2 * r / (r + fall) + (r / rise) ** 2 for r in rates]


@pytest.mark.parametrize("fall", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("steps", [50, 100, 1000])
def test_it_finds_where_the_loss_falls_fastest_without_lag_however_many_steps(fall, steps):
    rates = grid(steps)
    assert fall / 1.4 < suggest(rates, valley(rates, fall)).steep < fall * 1.4


def test_it_finds_a_tenth_of_the_rate_at_the_minimum():
    rates = grid(200)
    losses = [1 + (torch.tensor(r).log10() + 2).item() ** 2 for r in rates]
    suggestion = suggest(rates, losses)
    assert suggestion.tenth == pytest.approx(1e-3, rel=0.1) and not suggestion.open_ended(probe_head=False)


def test_the_unit_of_the_rate_and_the_scale_and_level_of_the_loss_do_not_matter():
    rates, noise = grid(100), torch.randn(100, generator=torch.Generator().manual_seed(0)) * 0.1
    losses = [a + b for a, b in zip(valley(rates), noise.tolist(), strict=True)]
    suggestion = suggest(rates, losses)
    moved = suggest([8 * r for r in rates], [4 * loss + 1 for loss in losses])
    assert (moved.steep, moved.tenth) == (8 * suggestion.steep, 8 * suggestion.tenth)
    assert rates[0] <= suggestion.steep <= rates[-1]


def test_smoothing_keeps_a_constant_and_takes_noise_away_and_its_end_knows_only_the_past():
    rates, noise = grid(100), torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.allclose(smooth(rates, [2.0] * 100), torch.full((100,), 2.0, dtype=torch.float64))
    assert smooth(rates, noise).std() < 0.5 * torch.tensor(noise).std()
    beta = float(torch.exp(-(torch.tensor(rates[1] / rates[0]).log()) / (0.3 * torch.tensor(10.0).log())))
    average = 0.0
    for loss in noise:
        average = beta * average + (1 - beta) * loss
    assert smooth(rates, noise)[-1].item() == pytest.approx(average / (1 - beta**100), rel=1e-4)


def test_a_loss_of_four_times_the_best_is_the_end():
    rates = grid(100)
    assert not diverged(rates, valley(rates, rise=10.0)) and not diverged(rates[:1], [5.0])
    assert diverged(rates, valley(rates, rise=1.0))


def test_a_loss_that_still_falls_at_the_last_rate_is_told():
    rates = grid(50, most=1e-2)
    assert suggest(rates, valley(rates)).open_ended(probe_head=False)


def test_a_loss_that_never_falls_has_no_answer():
    rates = grid(20)
    suggestion = suggest(rates, [1.0 + i for i in range(20)])
    with pytest.raises(
        UserError, match=r"falls nowhere from rate 1.0e-06 to 1.0e\+01: give a smaller lr_find.least, or more lr_find.steps"
    ):
        lr_find.choose_rate(suggestion, rates, probe_head=False)


def test_for_a_probe_head_a_tenth_of_the_rate_from_which_on_the_loss_rises_is_taken():
    rates = grid(100, most=0.3)
    flat = [0.01 * (1 + (rate / 0.1) ** 2) for rate in rates]
    assert 0.003 < lr_find.choose_rate(suggest(rates, flat), rates, probe_head=True) < 0.03
    rates = grid(100, least=1e-2)
    with pytest.raises(UserError, match=r"the loss rises from the first rates on: give a smaller lr_find\.least"):
        lr_find.choose_rate(suggest(rates, [100.0**i for i in range(100)]), rates, probe_head=True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"least": 0.0}, "lr_find.least=0 lr_find.most=10: give rates above 0"),
        ({"least": 1.0, "most": 0.1}, "the second above the first"),
        ({"most": float("inf")}, "the second above the first"),
        ({"steps": 9}, "lr_find.steps=9: give a whole number, 10 or more"),
    ],
)
def test_a_setting_out_of_its_range(given, line):
    with pytest.raises(UserError, match=line):
        RangeTest(**given)


class GivenLosses(LightningModule):
    """Its losses are the data."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return batch.mean() + 0 * self.weight.sum()

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.5)
        return {"optimizer": optimizer, "lr_scheduler": Rates(optimizer, constant, steps=9, epochs=1).config}


def recorded(losses, **options):
    seen = LossByRate()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, callbacks=[seen], **quiet, **options)
    trainer.fit(GivenLosses(), DataLoader(torch.tensor(losses), batch_size=1))
    return seen


def test_the_loss_of_a_step_is_the_mean_over_its_batches_also_where_an_epoch_ends_in_between():
    seen = recorded([1.0, 2.0, 3.0, 4.0, 5.0], accumulate_grad_batches=2)
    assert seen.losses == [1.5, 3.5, 5.0] * 2 and seen.rates == [1.0] * 6


def test_a_loss_that_is_not_finite_ends_it_and_is_not_recorded():
    assert recorded([1.0, 1.0, float("nan"), 1.0]).losses == [1.0, 1.0]


def test_a_loss_that_is_not_finite_at_the_first_step_is_refused():
    with pytest.raises(UserError, match="the loss of the first step is nan"):
        recorded([float("nan"), 1.0])


def test_one_stage_of_a_schedule_begins_at_once_at_the_rates_of_the_whole():
    stages = [
        Stage(["head"]),
        Stage(["a"], epoch=2, until=Until("val/loss", threshold=1.0, mode="min"), from_best=True),
        Stage(["*"], step=99),
    ]
    schedule = Schedule(stages, [("head", 1.0), ("*", 0.1)])
    for index, train in ((0, "head"), (1, "a"), (2, "*"), (-1, "*")):
        alone = lr_find.single_stage(schedule, index)
        assert alone.stages == (Stage([train]),) and alone.lr_scale == schedule.lr_scale
    with pytest.raises(UserError, match=r"lr_find.stage=3: this schedule has 3 stages, give -3 to 2"):
        lr_find.single_stage(schedule, 3)


class Spy(SGD):
    """Notes the rates, and which parameters a step moves."""

    seen: ClassVar[list] = []

    def step(self, closure=None):
        loss = super().step(closure)
        Spy.seen.append({group["name"]: (group["lr"], any(p.grad is not None for p in group["params"])) for group in self.param_groups})
        return loss


def composed(folder, *overrides):
    with fresh_hydra():
        return compose("train", overrides=["recipe=lr_find", "trainer=cpu", f"paths.run={folder}", *overrides])


def test_from_config_to_files_the_ratio_between_groups_holds_at_every_step(tmp_path, capsys):
    """Two batches an epoch, two a step: the loader is gone through again and again."""
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
    assert len(rows) == len(Spy.seen) == 30 and [row["rate"] for row in rows] == pytest.approx(grid(30, most=1.0))
    for row, groups in zip(rows, Spy.seen, strict=True):
        assert {name: lr for name, (lr, _) in groups.items()} == pytest.approx({name: row["rate"] * by for name, by in scales.items()})
        assert all(moved for _, moved in groups.values())
    assert rows[0]["rate"] <= steep <= rows[-1]["rate"]
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"optimizer.lr={steep:.1e} (head at {steep:.1e}, backbone.layer4 at ")
    assert sorted(path.name for path in Path(tmp_path / "run").iterdir()) == ["lr_find.csv", "lr_find.png"]
    assert (tmp_path / "run/lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_that_is_named_is_what_trains_and_the_seed_decides_everything(tmp_path):
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
    a, b, c = ((tmp_path / name / "lr_find.csv").read_text() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("override", "line"),
    [("resume=true", "leave it out"), ("lr_find.steps=many", "a whole number"), ("lr_find.stage=2", "has 1 stage, give -1")],
)
def test_a_mistake_is_found_before_anything_is_trained(tmp_path, override, line):
    with pytest.raises(UserError, match=line):
        lr_find.run(composed(tmp_path, override))
