"""Errors of collective operations differ from other errors by their text only: torch gives them no class of their own."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EarlyStopping, Timer
from omegaconf import OmegaConf

from ftlit.lit.strategies import keeps_whole_weights, shards_later
from ftlit.recipes.run.trainer import _why_lost, build_trainer, describe_fit, strategy_class, unsharded

CFG = OmegaConf.create({"rank_timeout": 0.5})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 500ms for recv operation to complete",
            "has not answered for 0.5 minutes",
        ),
        ("Application timeout caused pair closure", "has not answered for 0.5 minutes"),
        ("[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:1", "failed; see the error above"),
        ("mat1 and mat2 shapes cannot be multiplied", ""),
        ("timeout of a loader", ""),
    ],
)
def test_a_lost_process_is_recognised_by_the_error_that_it_causes(message, reason):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert reason in _why_lost(CFG, trainer, RuntimeError(message))
    assert bool(reason) == bool(_why_lost(CFG, trainer, RuntimeError(message)))


@pytest.mark.parametrize(
    ("strategy", "whole", "later"),
    [
        (None, True, False),
        ("auto", True, False),
        ("ddp_spawn", True, False),
        ("FSDP", False, False),
        ({"_target_": "lightning.pytorch.strategies.DDPStrategy"}, True, False),
        ({"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"}, False, False),
        ({"_target_": "ftlit.Fsdp2Strategy"}, False, True),
        ({"_target_": "ftlit.lit.sharding.fsdp2.Fsdp2Strategy"}, False, True),
        ({"_target_": "mine.nowhere.Sharding"}, True, False),  # building it is an error
    ],
)
def test_whether_a_config_shards_depends_on_the_class_and_not_on_its_name(strategy, whole, later):
    cfg = OmegaConf.create({"trainer": {"strategy": strategy}})
    found = strategy_class(cfg)
    assert (keeps_whole_weights(found), shards_later(found)) == (whole, later)
    assert unsharded(cfg) == ({"strategy": "ddp"} if later else {})


def test_the_longest_time_may_be_given_in_units():
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    node = {"_target_": "lightning.pytorch.Trainer", "max_time": {"hours": 2, "minutes": 1}, **quiet}
    trainer = build_trainer(OmegaConf.create({"rank_timeout": 1, "trainer": node}))
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    assert timer.time_remaining() == 7260


def test_the_line_of_a_run_says_why_it_ended_early():
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    stopping = EarlyStopping("val/loss")
    trainer = pl.Trainer(callbacks=[stopping], **quiet)
    assert describe_fit(trainer, 2.04, trains=True) == ["trained in 2.0 s"]
    stopping.stopped_epoch = 7
    assert describe_fit(trainer, 2, trains=True) == ["trained in 2.0 s", "stopped early after epoch 7, because val/loss stalled"]
    assert describe_fit(trainer, 2, trains=False) == ["fitted in 2.0 s"]
