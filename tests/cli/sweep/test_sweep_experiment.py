"""An experiment of the user holds a whole sweep."""

import os
import sys

import pytest
import warm
from doc_pages import PAGES, blocks
from paths import ROOT

from ftlit.sweeps.jobs import jobs_of


@pytest.mark.e2e
def test_the_sweep_of_the_page_runs_from_its_file_and_the_command_line_replaces_values(tmp_path):
    (page,) = (page for page in PAGES if page.name == "sweeps.md")
    (text,) = (block.text for block in blocks(page) if "experiment/heads.yaml" in block.text)
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    (tmp_path / "my_conf/experiment/heads.yaml").write_text(text)
    words = ["--config-dir", "my_conf", "experiment=heads", "hydra.sweep.dir=sweep", "trainer=cpu", "trainer.max_epochs=2", "seed=5"]
    done = warm.run([sys.executable, ROOT / "train.py", *words], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert {(job.values["head"], job.values["seed"]) for _, job in jobs_of(tmp_path / "sweep")} == {("linear_probe", "5"), ("linear", "5")}
