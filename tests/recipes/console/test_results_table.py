"""The table of results: only checkpoints that exist are named, and classes with a low recall."""

import pytest
from omegaconf import OmegaConf

from ftlit.recipes.console.results_table import print_results
from ftlit.report.scores import ClassScore


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (("best", "last"), "best and last checkpoint, metrics.csv"),
        (("best", "last", "linear_probe"), "best, last and linear_probe checkpoint, metrics.csv"),
        (("last",), "; last checkpoint, metrics.csv"),
        ((), "; metrics.csv"),
    ],
)
def test_the_line_below_names_the_checkpoints_that_exist(tmp_path, capsys, files, text):
    (tmp_path / "checkpoints").mkdir()
    for name in files:
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    results = {f"{split}/{metric}": 0.5 for split in ("val", "test") for metric in ("accuracy", "f1", "loss")}
    cfg = OmegaConf.create({"paths": {"run": str(tmp_path)}})
    print_results(cfg, results, ["trained in 1.0 s"], {}, {"val": "train", "test": "train"})
    assert text in capsys.readouterr().out


def test_classes_with_a_low_recall_are_named_with_their_images(tmp_path, capsys):
    results = {f"{split}/{metric}": 0.5 for split in ("val", "test") for metric in ("accuracy", "f1", "loss")}
    cfg, fitted_on = OmegaConf.create({"paths": {"run": str(tmp_path)}}), {"val": "train", "test": "train"}
    print_results(cfg, results, [], {}, fitted_on, low=[ClassScore("ants", 2, 0.0, 0.0, 0.0), ClassScore("bees", 3, 1.0, 1 / 3, 0.5)])
    assert "\nlow recall on test: ants (0 of 2 correct), bees (1 of 3 correct)\n" in capsys.readouterr().out
    print_results(cfg, results, [], {}, fitted_on)
    assert "low recall" not in capsys.readouterr().out
