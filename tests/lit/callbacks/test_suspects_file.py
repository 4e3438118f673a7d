"""SuspectsFile: the file names the training examples, also where the head is fitted on a share of them, and a resumed run keeps it."""

import csv

import lightning.pytorch as pl
import pytest
from test_probe_head import L2_PENALTIES, QUIET, data, model

from ftlit import FitProbeHead, Schedule, Stage, StagedFinetuning
from ftlit.data.dataset import Examples
from ftlit.lit.callbacks import suspects_file
from ftlit.lit.callbacks.suspects_file import SuspectsFile
from ftlit.probes.fitted_head.suspects import Suspect
from ftlit.probes.layer_probes import LayerProbes
from ftlit.report.run_files import SUSPECTS


def written(folder, source, path=None, *, trains=False, l2=L2_PENALTIES, class_weights=None):
    """Fit the head with the callback; return the trainer, and the rows of the file, if there is one."""
    fitted = FitProbeHead(probing=LayerProbes(l2=l2), trains=trains, class_weights=class_weights)
    callbacks = [StagedFinetuning(Schedule([Stage(["*"])])), fitted, SuspectsFile(folder, fitted)]
    trainer = pl.Trainer(max_epochs=1 if path is None else 2, callbacks=callbacks, **QUIET)
    trainer.fit(model(), source, ckpt_path=path, weights_only=False)
    if not (folder / SUSPECTS).is_file():
        return trainer, None
    with (folder / SUSPECTS).open() as file:
        return trainer, list(csv.DictReader(file))


@pytest.fixture
def all_listed(monkeypatch):
    """List every held-out example, with its place as its probability."""
    found = lambda held_out, class_weights: [  # noqa: E731
        Suspect(place, label, (label + 1) % 3, 0.0, 1.0)
        for place, label in zip(held_out.places.tolist(), held_out.labels.tolist(), strict=True)
    ]
    monkeypatch.setattr(suspects_file, "suspects_of", found)


def test_the_file_lists_training_examples_and_the_line_counts_them(tmp_path, capsys, all_listed):
    _, rows = written(tmp_path, data())
    assert sorted(int(row["place"]) for row in rows) == list(range(30)) and all(row["item"] == row["place"] for row in rows)
    assert all((row["label"], row["suggested"]) == ("abc"[int(row["place"]) % 3], "abc"[(int(row["place"]) + 1) % 3]) for row in rows)
    assert f"30 of 30 training images are possibly mislabelled: {tmp_path / SUSPECTS}\n" in capsys.readouterr().out


def test_places_are_those_of_the_whole_split_where_the_head_is_fitted_on_a_share(tmp_path, monkeypatch, all_listed):
    monkeypatch.setattr("ftlit.lit.callbacks.probe_head.MAX_IMAGES", 15)
    _, rows = written(tmp_path, data(), trains=True)
    places = {int(row["place"]) for row in rows}
    assert len(places) == len(rows) == 15 and max(places) >= 15
    assert all(row["label"] == "abc"[int(row["place"]) % 3] for row in rows)


def test_of_more_than_the_limit_all_are_counted_and_the_least_probable_listed(tmp_path, capsys, monkeypatch, all_listed):
    monkeypatch.setattr(suspects_file, "MAX_SUSPECTS", 7)
    _, rows = written(tmp_path, data())
    line = "30 of 30 training images are possibly mislabelled, the 7 least probable are listed: "
    assert len(rows) == 7 and line in capsys.readouterr().out


def test_each_of_several_examples_with_equal_sources_has_its_own_place():
    whole = Examples(["a", "b", "a", "a", "b", "a"], [(label,) for label in (0, 1, 2, 0, 0, 0)], str)
    chosen = [0, 2, 3, 4]
    suspects = [Suspect(place, whole.labels[chosen[place]][0], 1, 0.1, 0.9) for place in range(4)]
    rows = suspects_file.rows_of(suspects, whole.subset(chosen), whole, ["x", "y", "z"])
    assert [(row.place, row.item, row.label) for row in rows] == [(0, "a", "x"), (2, "a", "z"), (3, "a", "x"), (4, "b", "x")]


def test_a_line_says_that_no_example_is_suspect_and_without_held_out_examples_there_is_neither_line_nor_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suspects_file, "suspects_of", lambda held_out, class_weights: [])
    assert written(tmp_path, data())[1] == []
    assert "none of 30 training images is possibly mislabelled\n" in capsys.readouterr().out
    assert written(tmp_path / "single", data(), l2=[0.1])[1] is None and "mislabelled" not in capsys.readouterr().out


def test_a_run_that_resumes_training_keeps_the_file(tmp_path, all_listed, monkeypatch):
    trainer, rows = written(tmp_path, data(), trains=True)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(suspects_file, "suspects_of", lambda held_out, class_weights: [])
    assert written(tmp_path, data(), tmp_path / "a.ckpt", trains=True)[1] == rows


def test_the_weights_with_which_the_head_was_fitted_are_undone(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(suspects_file, "suspects_of", lambda held_out, class_weights: given.append(class_weights) or [])
    written(tmp_path, data(), class_weights=[1.0, 2.0, 0.5])
    assert given == [[1.0, 2.0, 0.5]]
