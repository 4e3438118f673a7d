"""The table of results: only checkpoints that exist are named."""

import pytest
from omegaconf import OmegaConf

from ftlit.recipes.console.results_table import print_results


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
