"""EmaWeights: the average is what arithmetic says, it is what is validated and saved, and a resumed run has its bits."""

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import ALL, EPOCHS, HEAD, QUIET, SCHEDULES, TOP, Stop, data, model

from ftlit import EmaWeights, FeatureData, Fsdp2Strategy, LastCheckpoint, Schedule, SeedEachStep, Stage, StagedFinetuning, Until, UserError
from ftlit.inference.slim import digests
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.ema_weights import copy_of_tensors

LIVE = [Stage(HEAD), Stage(TOP, epoch=1, batchnorm="live"), Stage(ALL, epoch=2, batchnorm="live")]


def copy(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Seen(pl.Callback):
    """The weights after each step, those that are validated, and the metrics."""

    def __init__(self):
        self.steps, self.validated, self.accuracy = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(copy(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and trainer.state.fn == "fit":
            self.validated.append(copy(pl_module))

    def on_validation_end(self, trainer, pl_module):
        self.accuracy.append(float(trainer.callback_metrics["val/loss"]))


def fit(folder, stages=LIVE, *, source=None, ema=None, module=None, stop=None, resume=False, **settings):
    module, seen, ema = module or model(), Seen(), ema or EmaWeights(decay=0.8)
    best = BestCheckpoint(folder, monitor="val/loss")
    own = [StagedFinetuning(Schedule(stages)), LastCheckpoint(folder / "last.ckpt", every_n_steps=1), SeedEachStep(3), seen, best]
    options = {"max_epochs": EPOCHS} | QUIET | {"enable_checkpointing": True, "num_sanity_val_steps": 0} | settings
    trainer = pl.Trainer(accelerator="cpu", callbacks=[*own, Stop(stop), ema], **options)
    try:
        trainer.fit(module, source or data(), ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    except InterruptedError:
        assert stop is not None
    return module, trainer, seen


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(steps):
    """The average after all of these steps of training, in double precision."""
    average = {name: tensor.double() for name, tensor in steps[0].items()}
    for n, weights in enumerate(steps[1:], start=1):
        decay = min(0.8, (1 + n) / (10 + n))
        for name, tensor in weights.items():
            new = tensor.double()
            average[name] = decay * average[name] + (1 - decay) * new if tensor.is_floating_point() else new
    return average


def test_the_average_is_that_of_arithmetic_also_of_batch_norms_and_of_layers_that_train_later(tmp_path):
    module, _, seen = fit(tmp_path)
    expected, found = by_hand(seen.steps), copy(module)
    assert len(seen.steps) == 16 and any("running_mean" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    averaged = {name for name, tensor in found.items() if not torch.equal(tensor, seen.steps[-1][name])}
    assert {"backbone.low.0.weight", "backbone.low.1.running_mean"} <= averaged


def test_the_best_checkpoint_holds_the_weights_that_were_validated(tmp_path):
    module, trainer, seen = fit(tmp_path)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    number = best["epoch"]
    assert same(best["state_dict"], seen.validated[number])
    assert not same(best["state_dict"], seen.steps[4 * number + 3])
    for run in (trainer.validate, trainer.test):  # after training Lightning's callback would exchange the weights
        run(module, data(), ckpt_path=tmp_path / "best.ckpt", weights_only=True, verbose=False)
        assert same(copy(module), best["state_dict"])
    again = trainer.validate(module, data(), ckpt_path=tmp_path / "best.ckpt", weights_only=True, verbose=False)[0]
    assert again["val/loss"] == pytest.approx(seen.accuracy[number], abs=1e-6)


def test_the_average_has_its_own_tensors_and_shares_what_else_a_module_holds():
    module = torch.nn.Sequential(torch.nn.LSTM(2, 2), torch.nn.BatchNorm1d(2), torch.jit.script(torch.nn.Linear(2, 2)))
    module.data, module.again, module.registry = iter([]), module[0], module._modules
    average = copy_of_tensors(module)
    own = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert same(module.state_dict(), average.state_dict())
    assert own.isdisjoint(tensor.data_ptr() for tensor in average.state_dict().values())
    assert average.data is module.data and average.again is average[0] and average[0] is not module[0]


@pytest.mark.parametrize("step", [1, 5, 9, 14])
@pytest.mark.parametrize("stages", ["live", "frozen again"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path, stages, step):
    stages = LIVE if stages == "live" else SCHEDULES[stages]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, _, _ = fit(tmp_path / "a", stages)
    fit(tmp_path / "b", stages, stop=step)
    resumed, _, _ = fit(tmp_path / "b", stages, resume=True)
    assert same(copy(whole), copy(resumed))
    a, b = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in "ab")
    assert same(a["current_model_state"], b["current_model_state"]) and same(a["averaging_state"], b["averaging_state"])
    a, b = (torch.load(tmp_path / name / "best.ckpt", weights_only=True) for name in "ab")
    assert a["epoch"] == b["epoch"] and same(a["state_dict"], b["state_dict"])


@pytest.mark.parametrize("schedule", ["top down", "frozen again", "frozen again within an epoch"])
def test_on_stored_features_the_frozen_layers_of_the_average_are_those_that_the_features_are_of(tmp_path, schedule):
    """So the loss that was logged is that of the checkpoint on images."""
    _, _, seen = fit(tmp_path, SCHEDULES[schedule], source=FeatureData(data(), tmp_path / "store"))
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    module = model()
    module.load_state_dict(best["state_dict"])
    plain = pl.Trainer(accelerator="cpu", **QUIET)
    loss = plain.validate(module, data(), verbose=False)[0]["val/loss"]
    assert loss == pytest.approx(seen.accuracy[best["epoch"]], abs=1e-5)


def test_a_slim_checkpoint_leaves_frozen_layers_out_of_both_states(tmp_path):
    module = model()
    module._base = digests(module.backbone)
    fit(tmp_path, [Stage(TOP)], module=module, max_epochs=1)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert not any(name.startswith(("backbone.low", "backbone.middle")) for name in last[key])
        assert any(name.startswith("backbone.top") for name in last[key])


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"average\.decay=1: give a number"):
        EmaWeights(decay=1)
    best = [Stage(HEAD), Stage(ALL, epoch=2, until=Until("val/loss", "min", patience=1), from_best=True)]
    with pytest.raises(UserError, match="from_best"):
        fit(tmp_path, best)
    with pytest.raises(UserError, match=r"bf16-mixed, or leave average=ema"):
        fit(tmp_path, module=model().to(torch.bfloat16))


def test_what_cannot_be_averaged_is_an_error_before_training_begins():
    for settings in ({"precision": "bf16-true"}, {"strategy": Fsdp2Strategy(), "devices": 2}):
        with pytest.raises(UserError, match=r"leave average=ema \(EmaWeights\) out"):
            EmaWeights().check(pl.Trainer(accelerator="cpu", **settings, **QUIET))


def test_lightning_does_not_warn_of_strategies_that_are_refused(tmp_path, recwarn):
    fit(tmp_path, [Stage(ALL)], max_epochs=1)
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]
