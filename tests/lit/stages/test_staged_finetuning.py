"""StagedFinetuning in a LightningModule of a user: frozen means frozen, groups never change, resumed training is in the right stage."""

import re
from functools import partial

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from staged_net import Net, fit, moved
from torch import nn

from ftlit import Rates, Schedule, Stage, StagedFinetuning, UserError, examine, schedules
from ftlit.finetuning.lr_schedule import linear


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return *fit(5, folder=folder), folder


def test_in_the_head_stage_only_the_head_changes_and_no_statistics(run):
    _, shots, _ = run
    start = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    assert moved(start, shots.states[1]) == {"head.weight", "head.bias"}


def test_each_stage_changes_exactly_its_layers(run):
    _, shots, _ = run
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[1], shots.states[2])} == {"head", "body.top"}
    assert {name.rsplit(".", 2)[0] for name in moved(shots.states[2], shots.states[3])} == {"head", "body.top", "body.low"}


def test_frozen_modules_and_their_dropout_stay_in_evaluation_mode(run):
    model, _, _ = run
    head_stage, last_stage = model.seen[5], model.seen[-1]
    assert not any(head_stage[name] for name in ("body.low", "body.low.1", "body.low.2", "body.top.2"))
    assert head_stage["head"] and all(last_stage.values())


def test_two_callbacks_are_an_error_before_training():
    with pytest.raises(
        UserError, match=r"^the trainer has several StagedFinetuning callbacks: give one callback, whose Schedule has the stages of all"
    ):
        fit(1, callbacks=[StagedFinetuning(Schedule([Stage(["*"])]))])


def stage_lines(capsys):
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    return [line.strip() for line in re.split(r"[\r\n]", out) if line.strip().startswith(("stage", "resumed"))]


@pytest.mark.parametrize("bar", [False, True])
def test_each_stage_prints_a_line_when_it_begins_in_any_project(capsys, bar):
    fit(2, schedule=Schedule([Stage(["head"]), Stage(["body.top"], step=2), Stage(["*"], epoch=1)]), enable_progress_bar=bar)
    assert stage_lines(capsys) == ["stage 0 begins at epoch 0: head", "stage 1 begins at step 2: body.top", "stage 2 begins at epoch 1: *"]


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize(
    ("epoch", "lines"),
    [
        (1, ["resumed at epoch 2, step 8, in stage 1 (of 0 to 2): head + body.top", "stage 1 begins at epoch 2: head + body.top"]),
        (2, ["resumed at epoch 3, step 12, in stage 2 (of 0 to 2): *", "stage 2 begins at epoch 3: *"]),
        (3, ["resumed at epoch 4, step 16, in stage 2 (of 0 to 2): *"]),
    ],
)
def test_a_resume_names_the_stage_and_one_that_began_before_has_no_second_line(run, capsys, epoch, lines, bar):
    *_, folder = run
    capsys.readouterr()
    fit(max(4, epoch + 2), ckpt_path=folder / f"{epoch}.ckpt", enable_progress_bar=bar)
    shown = stage_lines(capsys)
    assert shown[: len(lines)] == lines and all("resumed" not in line for line in shown[len(lines) :])


def test_a_single_stage_has_no_line_but_a_resume_has_one(capsys, tmp_path):
    fit(1, schedule=Schedule([Stage(["*"])]), folder=tmp_path)
    assert stage_lines(capsys) == []
    fit(2, schedule=Schedule([Stage(["*"])]), ckpt_path=tmp_path / "0.ckpt")
    assert stage_lines(capsys) == ["resumed at epoch 1, step 4, in the only stage: *"]


def test_a_last_stage_by_epoch_after_the_last_step_is_an_error_before_training():
    with pytest.raises(UserError, match=r"the last stage .* would never begin, because max_steps=12 \(4 steps per epoch\)"):
        fit(5, max_steps=12)
    fit(5, max_steps=13)


def test_a_last_stage_that_the_run_reaches_because_batches_are_accumulated_is_not_refused():
    accumulation = GradientAccumulationScheduler({0: 4, 2: 1})  # 1 step in each of the first two epochs
    _, shots = fit(4, schedule=Schedule([Stage(["head"]), Stage(["*"], epoch=2)]), callbacks=[accumulation], max_steps=4)
    assert shots.stages == [0, 0, 1]


@pytest.mark.parametrize("hook", ["on_train_batch_start", "training_step"])
def test_a_later_call_of_train_does_not_change_frozen_modules(hook):
    class TrainCallback(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.train()

    class CallsTrain(Net):
        def training_step(self, batch, batch_idx):
            if hook == "training_step":
                self.train()
            return super().training_step(batch, batch_idx)

    model = CallsTrain()
    callbacks = [TrainCallback()] if hook == "on_train_batch_start" else []
    _, shots = fit(2, model=model, callbacks=callbacks, schedule=Schedule([Stage(["head"])]))
    assert moved(Net().state_dict(), shots.states[-1]) == {"head.weight", "head.bias"}


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


def test_a_stage_may_begin_at_a_step_within_an_epoch():
    model = Net()
    fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], step=6)]), model=model)
    assert [seen["body.low"] for seen in model.seen] == [False] * 6 + [True] * 6  # four steps an epoch


def test_under_accumulation_a_stage_counts_the_steps_of_the_optimizer():
    model = Net()
    fit(3, schedule=Schedule([Stage(["head"]), Stage(["*"], step=3)]), model=model, accumulate_grad_batches=2)
    assert [seen["body.low"] for seen in model.seen] == [False] * 6 + [True] * 6


def test_restarting_rates_start_again_with_each_stage():
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
    """A module whose head exists only after `configure_model`, as FSDP2 requires."""

    def __init__(self):
        super().__init__()
        self.kept = self.head
        del self.head

    def configure_model(self):
        self.head = self.kept
        del self.kept


def test_layers_that_configure_model_builds_are_staged(run):
    _, whole, _ = run
    _, late = fit(5, model=Late())
    assert moved(whole.states[-1], late.states[-1]) == set()


def test_verbose_prints_the_plan_before_the_first_stage_and_the_schedule_may_be_a_function(capsys, monkeypatch):
    monkeypatch.setattr("staged_net.StagedFinetuning", partial(StagedFinetuning, verbose=True))
    fit(2, schedule=schedules.head_then_all(backbone="body", head="head", epoch=1, scale=0.1, decay=1.0))
    out = capsys.readouterr().out
    assert out.index("stage 0, epoch 0: head; 27 of ") < out.index("head: 27 parameters; trains in stage 0-1; learning rate 1.0e-01")
    assert out.index("body.low: ") < out.index("stage 0 begins at epoch 0: head")
    assert "gets only 8 optimizer steps" in out
    with pytest.raises(UserError, match=r"^StagedFinetuning got a list as its schedule: give Schedule"):
        fit(1, schedule=[Stage(["*"])])


@pytest.mark.parametrize(("warns", "lines"), [(True, 1), (False, 0)])
def test_the_warnings_of_the_plan_are_printed_without_the_plan(capsys, monkeypatch, warns, lines):
    monkeypatch.setattr("staged_net.StagedFinetuning", partial(StagedFinetuning, warns=warns))
    fit(1, schedule=Schedule([Stage(["head", "body.low.0"])]))
    out = capsys.readouterr().out
    assert out.count("warning: no stage trains body.low.1, body.top, although lower layers train") == lines
    assert out.count("gets only 4 optimizer steps") == lines and "parameters;" not in out


def test_a_trial_run_is_not_said_to_be_short(capsys):
    fit(1, schedule=Schedule([Stage(["*"])]), fast_dev_run=True)
    assert "optimizer step" not in capsys.readouterr().out


def test_the_head_that_an_earlier_fit_trained_is_not_said_to_have_random_weights(capsys, monkeypatch):
    monkeypatch.setattr("staged_net.StagedFinetuning", partial(StagedFinetuning, verbose=True))
    model, _ = fit(1, schedule=Schedule([Stage(["head"])]))
    assert "random weights" in capsys.readouterr().out
    fit(1, schedule=Schedule([Stage(["*"])]), model=model)
    assert "random weights" not in capsys.readouterr().out
    model.head = nn.Linear(8, 3)
    fit(1, schedule=Schedule([Stage(["*"])]), model=model)
    assert "random weights" in capsys.readouterr().out


@pytest.mark.parametrize(("policy", "live"), [("auto", False), ("live", True)])
def test_what_a_train_method_of_the_user_keeps_in_evaluation_mode_stays_in_it(policy, live):
    class Quiet(Net):
        def train(self, mode=True):
            super().train(mode)
            self.body.low.eval()
            return self

    schedule = Schedule([Stage(["head"]), Stage(["*"], epoch=1, batchnorm=policy)])
    model, before = Quiet(), Quiet()
    assert before.body.low[1].running_mean.equal(model.body.low[1].running_mean)
    rows = examine(model, schedule, model.configure_optimizers(), ["body.low", "body.top"]).rows
    fit(2, schedule=schedule, model=model)
    modes = model.seen[-1]
    assert modes["body.top.1"] and modes["head"] and not modes["body.low.2"] and modes["body.low.1"] is live
    assert before.body.low[1].running_mean.equal(model.body.low[1].running_mean) is not live
    assert [row.batchnorm_text for row in rows] == ["live" if live else "frozen_stats", "live"]
    fit(2, schedule=schedule, model=model)
    assert not model.seen[-1]["body.low.2"]
