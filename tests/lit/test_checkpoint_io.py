"""Checkpoints of a trainer are written as a whole, and a damaged or foreign one is an error that names it."""

import errno
import os
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ftlit import LastCheckpoint, UserError
from ftlit.files import WriteError
from ftlit.lit.checkpoint_io import CheckedCheckpointIO, use_checked_checkpoints, writes_atomically
from ftlit.lit.sharding.fsdp2 import Fsdp2Strategy

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *, resume=False, epochs=2, **settings):
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[LastCheckpoint(folder / "last.ckpt")], **QUIET, **settings)
    module = Line()
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(4, 3)), 2), ckpt_path=folder / "last.ckpt" if resume else None)
    return module.layer.weight


def test_a_trainer_writes_one_file_and_resumes_from_it(tmp_path):
    whole = fit(tmp_path / "a", epochs=3)
    fit(tmp_path / "b", epochs=2)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["last.ckpt"]
    assert torch.equal(fit(tmp_path / "b", resume=True, epochs=3), whole)


class OtherPlugin(TorchCheckpointIO):
    """Writes as Lightning does."""


def test_shards_with_the_optimizer_state_are_written_under_their_own_name_whatever_the_plugin():
    """`Fsdp2Strategy` knows the checkpoint that training resumes from by its path, and would leave the state out under another."""
    plain, sharded = (pl.Trainer(strategy=strategy, plugins=[OtherPlugin()], **QUIET) for strategy in ("auto", Fsdp2Strategy()))
    assert writes_atomically(sharded) and not writes_atomically(plain)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_leaves_the_last_checkpoint_and_names_the_file(tmp_path, monkeypatch, number):
    fit(tmp_path, epochs=1)
    before, save = (tmp_path / "last.ckpt").read_bytes(), torch.save

    class Full:
        def __init__(self, file):
            self.file, self.room = file, 500

        def write(self, content):
            self.room -= len(bytes(content))
            if self.room < 0:
                raise OSError(number, os.strerror(number))
            return self.file.write(content)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(torch, "save", lambda content, file: save(content, Full(file)))
    with pytest.raises(WriteError) as caught:
        fit(tmp_path, resume=True, epochs=2)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'last.ckpt'} ({os.strerror(number)})")
    assert (tmp_path / "last.ckpt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    fit(tmp_path, resume=True, epochs=2)


def test_the_error_of_a_damaged_checkpoint_says_how_to_go_on(tmp_path):
    fit(tmp_path)
    whole = bytearray((tmp_path / "last.ckpt").read_bytes())
    (tmp_path / "best.ckpt").write_bytes(whole)
    whole[len(whole) // 2] ^= 4
    (tmp_path / "last.ckpt").write_bytes(whole)
    with pytest.raises(UserError, match=r"is damaged") as caught:
        fit(tmp_path, resume=True)
    text = str(caught.value)
    assert str(tmp_path / "last.ckpt") in text and f"backbone.weights={tmp_path / 'best.ckpt'}" in text and "\n" not in text


def other_checkpoints():
    yield "another", partial(torch.save, {"a": 1})
    yield "a tensor", partial(torch.save, torch.zeros(3))
    yield "text", lambda path: path.write_text("text")
    yield "empty", lambda path: path.write_bytes(b"")


@pytest.mark.parametrize(("name", "write"), other_checkpoints())
def test_another_file_in_place_of_a_checkpoint_is_named(tmp_path, name, write):
    write(tmp_path / "last.ckpt")
    with pytest.raises(
        UserError, match=r"last\.ckpt (is not a checkpoint|is damaged, or not a checkpoint|contains objects other)"
    ) as caught:
        fit(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_no_environment_variable_lets_a_resumed_run_execute_code(tmp_path, monkeypatch, capsys):
    fit(tmp_path)
    torch.save({**torch.load(tmp_path / "last.ckpt", weights_only=True), "x": Malicious()}, tmp_path / "last.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="contains objects other than tensors and plain values, so it is not loaded"):
        fit(tmp_path, resume=True)
    assert "executed" not in capsys.readouterr().out


def test_a_plugin_of_the_user_keeps_its_place():
    class Own(TorchCheckpointIO):
        """Another way to write checkpoints."""

    trainer = pl.Trainer(plugins=[own := Own()], **QUIET)
    use_checked_checkpoints(trainer)
    assert trainer.strategy.checkpoint_io is own
    plain = pl.Trainer(**QUIET)
    use_checked_checkpoints(plain)
    assert isinstance(plain.strategy.checkpoint_io, CheckedCheckpointIO)
