"""ValScores: the best checkpoint of a trained network holds its scores on val, and is otherwise as it was."""

import errno
from unittest.mock import Mock

import lightning.pytorch as pl
import torch
from test_probe_head import QUIET, data, model

from ftlit.inference.novelty import KEY as SUBSPACE
from ftlit.inference.prediction_sets import KEY, calibration_of
from ftlit.lit.callbacks.val_scores import ValScores
from ftlit.lit.checkpoint_io import use_checked_checkpoints


def test_the_checkpoint_gets_the_scores_on_val_and_keeps_all_else(tmp_path):
    module, scores = model(), ValScores()
    trainer = pl.Trainer(max_epochs=1, callbacks=[scores], **QUIET)
    use_checked_checkpoints(trainer)
    trainer.fit(module, data())
    path = tmp_path / "best.ckpt"
    trainer.save_checkpoint(path)
    before = torch.load(path, weights_only=False)
    scores.add_to(path, trainer)  # nothing was validated after training
    assert KEY not in torch.load(path, weights_only=False)
    for _ in range(2):  # as of a run that is resumed after its end
        trainer.validate(module, data(), verbose=False)
        scores.add_to(path, trainer)
        found = torch.load(path, weights_only=False)
        with torch.no_grad():
            logits = module.eval()(torch.stack([data().transforms["val"](data().collection.splits["val"].load(i)) for i in range(6)]))
        torch.testing.assert_close(found.pop(KEY)["scores"], calibration_of(logits, torch.arange(6) % 3).scores)
        assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in before["state_dict"].items())
        assert list(found) == list(before) and KEY not in found


def test_of_several_labels_the_subspace_is_kept_and_no_scores(tmp_path):
    module, scores = model(), ValScores()
    trainer = pl.Trainer(callbacks=[scores], **QUIET)
    use_checked_checkpoints(trainer)
    scores._batches = [(torch.zeros(0), torch.randn(20, 5))]
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    scores.add_to(path, trainer)
    found = torch.load(path)
    assert KEY not in found and found[SUBSPACE]["basis"].shape == (5, 5)


def test_one_number_of_each_image_is_kept_and_nothing_once_it_is_written(tmp_path):
    module, scores = model(), ValScores()
    trainer = pl.Trainer(callbacks=[scores], **QUIET)
    trainer.validate(module, data(), verbose=False)
    assert [tuple(own.shape) for own, _ in scores._batches] == [(6,)]
    scores.add_to(tmp_path / "best.ckpt", trainer)
    assert scores._batches == []


def test_a_full_disk_leaves_the_checkpoint_as_it_was_and_gives_a_note(tmp_path, monkeypatch, capsys):
    module, scores, path = model(), ValScores(), tmp_path / "best.ckpt"
    trainer = pl.Trainer(callbacks=[scores], **QUIET)
    use_checked_checkpoints(trainer)
    torch.save({"state_dict": module.state_dict()}, path)
    before = path.read_bytes()
    trainer.validate(module, data(), verbose=False)
    monkeypatch.setattr("ftlit.tensor_files.torch.save", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    scores.add_to(path, trainer)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
    printed = capsys.readouterr().out
    assert printed.startswith("note: the scores of val were not added to best.ckpt") and f"cannot write {path} (No space" in printed
