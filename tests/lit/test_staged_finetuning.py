"""StagedFinetuning in a LightningModule of a user: frozen means frozen, groups never change, resumed training is in the right stage."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from ftlit import Rates, Schedule, Stage, StagedFinetuning, Until, UserError, build_optimizer
from ftlit.finetuning.lr_schedule import linear
from ftlit.lit.stage_checks import check_same_schedule, schedule_values

SCHEDULE = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=2), Stage(["*"], epoch=3)])


class Net(pl.LightningModule):
    def __init__(self, scores=()):
        super().__init__()
        torch.manual_seed(0)
        self.scores = scores  # what validation finds, epoch by epoch
        low = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.body = nn.ModuleDict({"low": low, "top": nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())})
        self.head = nn.Linear(8, 3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.global_step)  # dropout by step, so that a resumed run draws the same
        self.seen.append({name: module.training for name, module in self.named_modules()})
        return nn.functional.cross_entropy(self.head(self.body.top(self.body.low(batch[0]))), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/score", float(self.scores[self.current_epoch]) if self.scores else 0.0)

    def configure_optimizers(self):
        return build_optimizer(self, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1), [("head", 1.0), ("body", 0.1)])


class Snapshots(pl.Callback):
    """The state, the groups and the modes at the end of each epoch; `.train()` called on everything in between, as other code may."""

    def __init__(self, folder=None):
        self.folder, self.states, self.groups, self.stages = folder, [], [], []

    def on_train_epoch_start(self, trainer, model):
        model.train()

    def on_validation_end(self, trainer, model):
        model.train()

    def on_train_epoch_end(self, trainer, model):
        self.stages.append(trainer.callbacks[0].index)
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.groups.append([(group.get("name"), group["lr"], len(group["params"])) for group in trainer.optimizers[0].param_groups])
        if self.folder:
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(epochs, *, folder=None, ckpt_path=None, schedule=SCHEDULE, model=None, callbacks=(), **settings):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, generator=generator), i % 3) for i in range(16)]
    model, shots = model or Net(), Snapshots(folder)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[StagedFinetuning(schedule), *callbacks, shots], **quiet | settings
    )
    trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return model, shots


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return *fit(5, folder=folder), folder


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_head_moves_in_its_stage_statistics_included(run):
    _, shots, _ = run
    start = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    assert moved(start, shots.states[1]) == {"head.weight", "head.bias"}


def test_each_stage_moves_exactly_its_layers(run):
    _, shots, _ = run
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[1], shots.states[2])} == {"head", "body.top"}
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[2], shots.states[3])} == {"head", "body.top", "body.low"}


def test_frozen_modules_stay_in_evaluation_mode_dropout_too(run):
    model, _, _ = run
    head_stage, last_stage = model.seen[5], model.seen[-1]
    assert not any(head_stage[name] for name in ("body.low", "body.low.1", "body.low.2", "body.top.2"))
    assert head_stage["head"] and all(last_stage.values())


def test_groups_are_built_once_and_keep_their_rates(run):
    _, shots, _ = run
    assert all(groups == [("head", pytest.approx(0.1), 2), ("body", pytest.approx(0.01), 8)] for groups in shots.groups)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_resumed_run_ends_with_the_bits_of_the_run_that_never_stopped(run, epoch):
    _, whole, folder = run
    _, resumed = fit(5, ckpt_path=folder / f"{epoch}.ckpt")
    assert moved(whole.states[-1], resumed.states[-1]) == set()


def test_a_second_fit_starts_at_the_first_stage():
    model, _ = fit(4)
    _, shots = fit(4, model=model)
    assert moved(shots.states[0], shots.states[1]) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("schedule", [Schedule([Stage(["haed"])]), Schedule([Stage(["head"]), Stage(["*"], epoch=9)])])
def test_a_mistake_stops_before_training(schedule):
    model = Net()
    with pytest.raises(UserError) as error:
        fit(5, schedule=schedule, model=model)
    assert "\n" not in str(error.value) and model.seen == []


def test_a_stage_may_begin_at_a_step_within_an_epoch():
    model = Net()
    fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], step=6)]), model=model)
    assert [seen["body.low"] for seen in model.seen] == [False] * 6 + [True] * 6  # four steps an epoch


def test_with_accumulation_steps_are_the_optimizers():
    model = Net()
    fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], step=3)]), model=model, accumulate_grad_batches=2)
    assert [seen["body.low"] for seen in model.seen] == [False] * 6 + [True] * 6


UNTIL = Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("val/score", threshold=0.9))])


@pytest.mark.parametrize(
    ("scores", "stages"),
    [
        ([0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 0, 1, 1, 1, 1, 1]),  # decided once: later values do not change it
        ([0.1] * 7, [0, 0, 0, 0, 0, 1, 1]),  # the latest epoch
        ([0.9] * 7, [0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_stage_waits_for_a_metric(scores, stages):
    _, shots = fit(7, schedule=UNTIL, model=Net(scores))
    assert shots.stages == stages


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_the_decision_of_a_metric_is_resumed(tmp_path, epoch):
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=6, until=Until("val/score", patience=2))])
    scores = [0.5, 0.4, 0.4, 0.1, 0.1, 0.1, 0.9]
    _, whole = fit(7, schedule=schedule, model=Net(scores), folder=tmp_path)
    _, resumed = fit(7, schedule=schedule, model=Net(scores), ckpt_path=tmp_path / f"{epoch}.ckpt")
    assert whole.stages == [0, 0, 0, 1, 1, 1, 1] and resumed.stages == whole.stages[epoch + 1 :]
    assert moved(whole.states[-1], resumed.states[-1]) == set()


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.2, 0.28, 0.28], 2), ([float("nan"), 0.5, 0.4, 0.3], 1)])
def test_the_best_weights_are_the_best_whatever_counts_as_progress(scores, best):
    until = Until("val/score", patience=3, min_delta=0.15)
    schedule = Schedule([Stage(["head"]), Stage(["body.top"], epoch=4, until=until, from_best=True)])
    _, shots = fit(5, schedule=schedule, model=Net([*scores, 0.0]))
    assert not moved(shots.states[best], shots.states[4]) & {"head.weight", "head.bias"}


def test_a_stage_may_begin_from_the_best_weights_of_the_one_before():
    scores = [0.1, 0.8, 0.2, 0.2, 0.2]
    until = Until("val/score", patience=2)
    schedule = Schedule([Stage(["head"]), Stage(["body.top"], epoch=9, until=until, from_best=True)])
    _, shots = fit(10, schedule=schedule, model=Net(scores + [0.0] * 5))
    assert shots.stages[:5] == [0, 0, 0, 0, 1]
    assert not moved(shots.states[1], shots.states[4]) & {"head.weight", "head.bias"}  # the head is that of epoch 1 again
    assert moved(shots.states[3], shots.states[4]) >= {"head.weight", "head.bias"}


def test_a_metric_that_is_not_logged_is_an_error_with_those_that_are():
    with pytest.raises(UserError, match=r"no logged metric for stage .*'val/scoer': did you mean 'val/score'"):
        fit(7, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("val/scoer", threshold=1.0))]))


def test_early_stopping_ends_a_run_in_its_last_stage_only_and_counts_again_in_each():
    stopping = EarlyStopping("val/score", mode="max", patience=2)
    _, shots = fit(20, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=6)]), model=Net([0.5] * 20), callbacks=[stopping])
    assert shots.stages == [0] * 6 + [1] * 3  # the first validation of a stage is its best, then two without progress


def test_a_checkpoint_of_another_schedule_is_an_error_that_shows_both(run):
    _, _, folder = run
    other = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=1), Stage(["*"], epoch=3)])
    with pytest.raises(UserError) as error:
        fit(5, schedule=other, ckpt_path=folder / "1.ckpt")
    assert "made with another schedule" in str(error.value) and "from epoch 2" in str(error.value) and "from epoch 1" in str(error.value)


STALLED = Until("val/score", patience=2, min_delta=0.5)
FREE = {"body.low": "frozen", "*": "live"}
RICH = Schedule([Stage(["head"]), Stage(["*"], epoch=3, until=STALLED, batchnorm=FREE, from_best=True)], [("head", 1), ("*", 0.1)])


def test_a_checkpoint_keeps_the_schedule_as_plain_values():
    values = json.loads(json.dumps(schedule_values(RICH)))  # plain values survive JSON
    assert values == StagedFinetuning(RICH).state_dict()["schedule"]
    check_same_schedule(values, RICH)
    assert values["stages"][1]["until"]["min_delta"] == 0.5 and values["lr_scale"] == [["head", 1.0], ["*", 0.1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": replace(STALLED, min_delta=0.25)}, r"mode max, min_delta 0\.5.* now .*mode max, min_delta 0\.25"),
        ({"batchnorm": "live"}, r"'body.low': 'frozen'.* now .*batchnorm live"),
        ({"from_best": False}, "from the best weights; now"),
        ({"name": "all"}, r"stage '\*': .* now stage 'all': "),
        ({"epoch": 4}, "epoch 3 at the latest.* epoch 4 at the latest"),
    ],
)
def test_every_change_of_a_stage_is_an_error_that_shows_it(change, message):
    other = Schedule([RICH.stages[0], replace(RICH.stages[1], **change)], RICH.lr_scale)
    with pytest.raises(UserError, match=message):
        check_same_schedule(schedule_values(RICH), other)


def test_a_stage_or_factor_more_or_less_and_a_checkpoint_of_an_earlier_release_are_errors():
    with pytest.raises(UserError, match=r"another schedule: stage '\*'.*; now no such stage"):
        check_same_schedule(schedule_values(RICH), Schedule(RICH.stages[:1], RICH.lr_scale))
    with pytest.raises(UserError, match=r"another schedule: no such learning-rate factor; now learning rate of \*: x 0\.1"):
        check_same_schedule(schedule_values(Schedule(RICH.stages, RICH.lr_scale[:1])), RICH)
    with pytest.raises(UserError, match="an earlier ftlit wrote this checkpoint"):
        check_same_schedule(["stage 'head': head from epoch 0; batchnorm auto"], RICH)


def test_restarting_rates_begin_again_with_each_stage():
    class Rated(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": Rates(optimizer, linear, steps=16, epochs=4, restart=True).config}

        def on_train_batch_start(self, batch, batch_idx):
            self.rates = [*getattr(self, "rates", []), [group["lr"] for group in self.optimizers().param_groups]]

    model = Rated()
    fit(4, model=model, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=1), Stage(["*"], step=10)]))
    head = [lr for lr, _ in model.rates]
    expected = [1 - i / 4 for i in range(4)] + [1 - i / 6 for i in range(6)] + [1 - i / 6 for i in range(6)]
    assert head == pytest.approx([0.1 * factor for factor in expected])
    assert [lr for _, lr in model.rates] == pytest.approx([lr / 10 for lr in head])


class Late(Net):
    """Layers that are there only when `configure_model` has run, as FSDP2 wants it."""

    def __init__(self):
        super().__init__()
        self.kept = self.head
        del self.head

    def configure_model(self):
        self.head = self.kept
        del self.kept


def test_layers_that_are_built_late_are_staged_too(run):
    _, whole, _ = run
    _, late = fit(5, model=Late())
    assert moved(whole.states[-1], late.states[-1]) == set()


def test_a_metric_of_the_training_steps_decides_at_the_end_of_the_epoch():
    class Training(Net):
        def training_step(self, batch, batch_idx):
            self.log("train/score", float(self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("train/score", threshold=2.0))])
    assert fit(6, schedule=schedule, model=Training())[1].stages == [0, 0, 0, 1, 1, 1]


def test_a_fit_that_continues_the_last_one_keeps_the_decisions():
    model, staging, shots = Net([0.9] * 8), StagedFinetuning(UNTIL), Snapshots()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=6, accelerator="cpu", callbacks=[staging, shots], **quiet)
    data = DataLoader([(torch.randn(4), i % 3) for i in range(8)], batch_size=4)
    trainer.fit(model, data, data)
    trainer.fit_loop.max_epochs = 8
    trainer.fit(model, data, data)
    assert shots.stages == [0] + [1] * 7


def test_a_metric_that_is_not_finite_ends_a_run_before_its_last_stage():
    stopping = EarlyStopping("val/score", mode="max", check_finite=True)
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=6)])
    with pytest.warns(UserWarning, match="training ended in stage 'head', before the last one began"):
        _, shots = fit(20, schedule=schedule, model=Net([0.5, float("nan")] * 10), callbacks=[stopping])
    assert shots.stages == [0, 0] and (stopping.patience, stopping.stopping_threshold) == (3, None)


def test_weight_averaging_that_computes_statistics_again_is_not_supported():
    with pytest.raises(UserError, match="StochasticWeightAveraging computes the statistics"):
        fit(5, callbacks=[StochasticWeightAveraging(0.1)])


def test_groups_of_another_schedule_are_an_error():
    schedule = Schedule([Stage(["*"])], [("head", 1.0), ("*", 0.3)])
    with pytest.raises(UserError, match="the optimizer's groups are not those of the schedule"):
        fit(1, schedule=schedule)


@pytest.mark.parametrize("scheduled", ["one rate", "a list", "no scheduler"])
def test_a_scheduler_that_gives_all_groups_one_rate_is_an_error(scheduled):
    schedule = Schedule([Stage(["*"])], [("head*", 1.0), ("*", 0.1)])

    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = build_optimizer(self, partial(torch.optim.SGD, lr=0.1), schedule.lr_scale)
            rates = {"one rate": 0.1, "a list": [0.1, 0.01]}
            if scheduled not in rates:
                return optimizer
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, rates[scheduled], total_steps=100)]

    refused = pytest.raises(UserError, match=r"not in the ratio asked for: head\* 0.004 \(x 1\), \* 0.004 \(x 0.1\); use ftlit.Rates")
    with refused if scheduled == "one rate" else nullcontext():
        fit(1, schedule=schedule, model=Scheduled())


def test_groups_that_ftlit_has_not_built_keep_their_rates():
    class Timms(Net):  # a scale that its scheduler applies later, and no name
        def configure_optimizers(self):
            parts = ((self.head, 1.0), (self.body, 0.5))
            return torch.optim.SGD([{"params": part.parameters(), "lr_scale": scale} for part, scale in parts], lr=0.1)

    _, shots = fit(1, schedule=Schedule([Stage(["*"])]), model=Timms())
    assert shots.stages == [0]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "training_step"])
def test_a_later_call_of_train_does_not_change_frozen_modules(hook):
    class Late(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.train()

    class Waking(Net):
        def training_step(self, batch, batch_idx):
            if hook == "training_step":
                self.train()
            return super().training_step(batch, batch_idx)

    model = Waking()
    callbacks = [Late()] if hook == "on_train_batch_start" else []
    _, shots = fit(2, model=model, callbacks=callbacks, schedule=Schedule([Stage(["head"])]))
    assert moved(Net().state_dict(), shots.states[-1]) == {"head.weight", "head.bias"}


def test_an_optimizer_without_the_parameters_that_are_frozen_at_first_is_an_error():
    class Usual(Net):
        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    with pytest.raises(UserError, match=r"stage 'head \+ body.top' trains what no optimizer holds: body.top.0.weight"):
        fit(5, model=Usual())
