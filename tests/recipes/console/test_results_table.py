"""The table of results: intervals of accuracies are those of scipy; only checkpoints that exist are named."""

import pytest
from omegaconf import OmegaConf
from scipy.stats import binomtest

from ftlit.recipes.console.results_table import accuracy_interval, print_results


@pytest.mark.parametrize(("right", "number"), [(0, 5), (5, 5), (1, 3), (365, 368), (9_000, 10_000)])
def test_the_interval_is_wilsons(right, number):
    expected = binomtest(right, number).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(right / number, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_images_any_accuracy_is_possible():
    assert accuracy_interval(float("nan"), 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("files", "text"),
    [(("best", "last"), "best and last checkpoint, metrics.csv"), (("last",), "; last checkpoint, metrics.csv"), ((), "; metrics.csv")],
)
def test_the_line_below_names_the_checkpoints_that_exist(tmp_path, capsys, files, text):
    (tmp_path / "checkpoints").mkdir()
    for name in files:
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    results = {f"{split}/{metric}": 0.5 for split in ("val", "test") for metric in ("accuracy", "f1", "loss")}
    cfg = OmegaConf.create({"paths": {"run": str(tmp_path)}})
    print_results(cfg, results, ["trained in 1.0 s"], {}, {"val": "train", "test": "train"})
    assert text in capsys.readouterr().out
