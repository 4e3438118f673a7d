"""Stages that begin by a logged metric, from the best weights of the previous stage; and EarlyStopping in the last stage."""

from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from staged_net import QUIET, Net, Snapshots, fit, moved
from torch.utils.data import DataLoader

from ftlit import Backbone, FineTuner, InputSpec, Rates, Schedule, Stage, StagedFinetuning, Until, UserError
from ftlit.finetuning.lr_schedule import constant, plateau
from ftlit.models.heads import LinearHead

UNTIL = Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("val/score", threshold=0.9))])


@pytest.mark.parametrize(
    ("scores", "stages"),
    [
        ([0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 0, 1, 1, 1, 1, 1]),  # a decision is final: later values do not change it
        ([0.1] * 7, [0, 0, 0, 0, 0, 1, 1]),  # the latest epoch at which it begins
        ([0.9] * 7, [0, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_stage_waits_for_a_metric(scores, stages):
    _, shots = fit(7, schedule=UNTIL, model=Net(scores))
    assert shots.stages == stages


@pytest.mark.parametrize(("scores", "stages"), [([0.1, 0.2, 0.9, 0.1], [0, 0, 0, 1]), ([0.1] * 4, [0] * 4)])
def test_without_a_latest_epoch_a_stage_may_never_begin(scores, stages):
    only = Schedule([Stage(["head"]), Stage(["*"], until=Until("val/score", threshold=0.9))])
    with pytest.warns(UserWarning, match="before stage .* began") if not any(stages) else nullcontext():
        _, shots = fit(4, schedule=only, model=Net(scores))
    assert shots.stages == stages


@pytest.mark.parametrize(
    ("until", "reason"),
    [
        (Until("val/score", threshold=0.9), "begin it (val/score >= 0.9) was not met in 3 validations, best value 0.3"),
        (Until("val/score", threshold=0.1, mode="min"), "begin it (val/score <= 0.1) was not met in 3 validations, best value 0.2"),
    ],
)
def test_the_end_of_training_says_how_far_the_metric_was_from_beginning_the_stage(until, reason):
    with pytest.warns(UserWarning) as caught:
        fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], until=until)]), model=Net([0.2, 0.3, float("nan")]))
    lines = [str(one.message) for one in caught if "stage" in str(one.message)]
    assert lines == [f"training ended in stage 'head', before stage '*' began: the condition to {reason}"]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.1, 0.2, 0.1], "not met in 3 validations, best value 0.2; training ended after 1 validation in a row without improvement"),
        ([0.1, 0.1, 0.2], "not met in 3 validations, best value 0.2; training ended after 0 validations in a row without improvement"),
        ([0.2, 0.1, 0.1], "met only in the last epoch, best value 0.2: train for at least one more epoch"),
    ],
)
def test_the_end_of_training_says_how_long_a_metric_stalled(scores, reason):
    with pytest.warns(UserWarning) as caught:
        fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], until=Until("val/score", patience=2))]), model=Net(scores))
    (line,) = [str(one.message) for one in caught if "began: " in str(one.message)]
    assert line.endswith(f"began: the condition to begin it (val/score (higher is better) stalls 2 times) was {reason}")


class Rated(Net):
    """The rate of the head in each step; rates are a tenth in the second stage."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        rates = Rates(optimizer, constant, steps=16, epochs=4, stage_factors=self.factors)
        return {"optimizer": optimizer, "lr_scheduler": rates.config}

    def on_train_batch_start(self, batch, batch_idx):
        self.rates = [*getattr(self, "rates", []), self.optimizers().param_groups[0]["lr"]]


def test_a_stage_that_a_metric_begins_has_its_own_rates_from_its_first_step(tmp_path):
    schedule = Schedule([Stage(["head"]), Stage(["*"], until=Until("val/score", threshold=0.9))])
    models = [Rated([0.1, 0.9, 0.1, 0.1]) for _ in range(3)]
    for model, factors in zip(models, ([1, 0.1], [1, 0.1], [1, 0.1, 0.01]), strict=True):
        model.factors = factors
    fit(4, schedule=schedule, model=models[0], folder=tmp_path)
    assert models[0].rates == pytest.approx([0.1] * 8 + [0.01] * 8)
    fit(4, schedule=schedule, model=models[1], ckpt_path=tmp_path / "2.ckpt")
    assert models[1].rates == pytest.approx([0.01] * 4)
    with pytest.raises(UserError, match=r"stage_factors=\[1, 0.1, 0.01\] has 3 numbers, but the schedule has 2 stages: give one"):
        fit(4, schedule=schedule, model=models[2])


class OnPlateau(Rated):
    restart = False

    def configure_optimizers(self):
        optimizer = Net.configure_optimizers(self)
        curve = partial(plateau, mode="max", patience=1)
        rates = Rates(optimizer, curve, steps=24, epochs=6, unit="epoch", monitor="val/score", restart=self.restart)
        return {"optimizer": optimizer, "lr_scheduler": rates.config}


@pytest.mark.parametrize(("restart", "rate"), [(False, 0.01), (True, 0.1)])
def test_a_stage_that_begins_with_reduced_rates_is_a_warning_whose_advice_helps(capsys, restart, rate):
    schedule = Schedule([Stage(["head"]), Stage(["*"], until=Until("val/score", patience=2))])
    model = OnPlateau([0.2, 0.1, 0.1, 0.3, 0.4, 0.5])
    model.restart = restart
    fit(6, schedule=schedule, model=model)
    assert model.rates[:12] == pytest.approx([0.1] * 12) and model.rates[12:] == pytest.approx([rate] * 12)
    warning = "warning: stage '*' begins when val/score stalls 2 times, but by then the plateau curve has lowered all learning rates"
    assert (warning in capsys.readouterr().out) == (not restart)


def test_a_stage_that_no_validation_could_begin_says_so():
    only = Schedule([Stage(["head"]), Stage(["*"], until=Until("val/score", threshold=0.9))])
    with pytest.warns(UserWarning, match=r"before stage '\*' began: no validation has logged val/score in this stage"):
        fit(3, schedule=only, check_val_every_n_epoch=4)


def test_a_stage_in_between_that_its_metric_never_began_is_named():
    until = Until("val/score", threshold=0.9)
    with pytest.warns(UserWarning, match=r"stage 'top' was left out, because its condition \(val/score >= 0.9\) was not met"):
        fit(3, schedule=Schedule([Stage(["head"]), Stage(["head", "body.top"], until=until, name="top"), Stage(["*"], epoch=2)]))


def test_a_metric_of_a_later_stage_that_nothing_logs_is_a_warning_after_the_first_validation():
    later = Schedule([Stage(["head"]), Stage(["head", "body.top"], epoch=2), Stage(["*"], until=Until("val/f1", threshold=0.9))])
    with pytest.warns(UserWarning, match="there is no logged metric 'val/f1': .*if nothing logs it later, training ends with this error"):
        with pytest.raises(UserError, match="there is no logged metric 'val/f1'"):
            fit(4, schedule=later)


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_a_resumed_run_keeps_the_decision_of_a_metric(tmp_path, epoch):
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=6, until=Until("val/score", patience=2))])
    scores = [0.5, 0.4, 0.4, 0.1, 0.1, 0.1, 0.9]
    _, whole = fit(7, schedule=schedule, model=Net(scores), folder=tmp_path)
    _, resumed = fit(7, schedule=schedule, model=Net(scores), ckpt_path=tmp_path / f"{epoch}.ckpt")
    assert whole.stages == [0, 0, 0, 1, 1, 1, 1] and resumed.stages == whole.stages[epoch + 1 :]
    assert moved(whole.states[-1], resumed.states[-1]) == set()


def test_a_metric_of_training_steps_ends_a_stage_at_the_end_of_the_epoch():
    class LogsInTraining(Net):
        def training_step(self, batch, batch_idx):
            self.log("train/score", float(self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("train/score", threshold=2.0))])
    assert fit(6, schedule=schedule, model=LogsInTraining())[1].stages == [0, 0, 0, 1, 1, 1]


def test_a_fit_that_continues_an_earlier_fit_keeps_the_decisions():
    model, staging, shots = Net([0.9] * 8), StagedFinetuning(UNTIL), Snapshots()
    trainer = pl.Trainer(max_epochs=6, accelerator="cpu", callbacks=[staging, shots], **QUIET)
    data = DataLoader([(torch.randn(4), i % 3) for i in range(8)], batch_size=4)
    trainer.fit(model, data, data)
    trainer.fit_loop.max_epochs = 8
    trainer.fit(model, data, data)
    assert shots.stages == [0] + [1] * 7


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.2, 0.28, 0.28], 2), ([float("nan"), 0.5, 0.4, 0.3], 1)])
def test_the_best_weights_do_not_depend_on_min_delta(scores, best):
    until = Until("val/score", patience=3, min_delta=0.15)
    schedule = Schedule([Stage(["head"]), Stage(["body.top"], epoch=4, until=until, from_best=True)])
    _, shots = fit(5, schedule=schedule, model=Net([*scores, 0.0]))
    assert not moved(shots.states[best], shots.states[4]) & {"head.weight", "head.bias"}


def test_a_stage_may_begin_from_the_best_weights_of_the_previous_stage():
    scores = [0.1, 0.8, 0.2, 0.2, 0.2]
    until = Until("val/score", patience=2)
    schedule = Schedule([Stage(["head"]), Stage(["body.top"], epoch=9, until=until, from_best=True)])
    _, shots = fit(10, schedule=schedule, model=Net(scores + [0.0] * 5))
    assert shots.stages[:5] == [0, 0, 0, 0, 1]
    assert not moved(shots.states[1], shots.states[4]) & {"head.weight", "head.bias"}  # the head of epoch 1, which is restored
    assert moved(shots.states[3], shots.states[4]) >= {"head.weight", "head.bias"}


def test_a_metric_that_is_not_logged_is_an_error_that_names_the_closest_one():
    with pytest.raises(UserError, match=r"no logged metric 'val/scoer': did you mean 'val/score'.*for `until` of stage"):
        fit(7, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=5, until=Until("val/scoer", threshold=1.0))]))


def reach(epoch, metric):
    return Schedule([Stage(["head"]), Stage(["*"], epoch=epoch, until=Until(metric, threshold=1.0))])


def test_a_misspelt_metric_is_found_before_training_where_a_sanity_validation_logs_its_names():
    steps = Net()
    with pytest.raises(UserError, match=r"no logged metric 'val/scoer': did you mean 'val/score'.*for `until` of stage"):
        fit(7, schedule=reach(5, "val/scoer"), model=steps)
    assert not steps.seen  # no training step
    with pytest.raises(UserError, match="no logged metric 'val/scoer'"):
        fit(7, schedule=reach(5, "val/scoer"), model=steps, num_sanity_val_steps=0)
    assert len(steps.seen) == 4  # an epoch: nothing was known before


def test_a_metric_that_only_training_logs_is_no_error_of_the_sanity_validation():
    class LogsLate(Net):
        def training_step(self, batch, batch_idx):
            self.log("train/score", 1.0, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    assert fit(3, schedule=reach(2, "train/score"), model=LogsLate())[1].stages == [0, 1, 1]


@pytest.mark.parametrize(("metric", "found"), [("val/acuracy", True), ("val/acc", True), ("val/accuracy", False), ("val/auroc", False)])
def test_the_metrics_of_fine_tuner_are_known_before_a_validation(metric, found):
    backbone = Backbone({"low": torch.nn.Conv2d(3, 4, 1)}, InputSpec(size=4))
    model = FineTuner(backbone, LinearHead(4, 2), num_classes=2, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", **QUIET)
    staging = StagedFinetuning(reach(2, metric))
    if found:
        with pytest.raises(UserError, match=f"no logged metric '{metric}': did you mean 'val/accuracy'"):
            staging.setup(trainer, model, "fit")
    else:
        staging.setup(trainer, model, "fit")


def test_early_stopping_ends_a_run_in_its_last_stage_only_and_restarts_in_each_stage():
    stopping = EarlyStopping("val/score", mode="max", patience=2)
    _, shots = fit(20, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=6)]), model=Net([0.5] * 20), callbacks=[stopping])
    assert shots.stages == [0] * 6 + [1] * 3  # the first validation of a stage is its best, then two without progress


def test_a_metric_that_is_not_finite_ends_a_run_in_any_stage():
    stopping = EarlyStopping("val/score", mode="max", check_finite=True)
    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=6)])
    with pytest.warns(UserWarning, match="training ended in stage 'head', before stage .* began"):
        _, shots = fit(20, schedule=schedule, model=Net([0.5, float("nan")] * 10), callbacks=[stopping])
    assert shots.stages == [0, 0] and (stopping.patience, stopping.stopping_threshold) == (3, None)
