"""`again=RUN`: the words of a run come back, those beside it win, and the run that it begins has the same result."""

import json
import re
import shlex
from contextlib import nullcontext

import pytest
from train_command import FAST, train

from ftlit import UserError
from ftlit.cli.run_again import with_run
from ftlit.formats import DamagedFile, write_json
from ftlit.run_folder import COMMAND

WORDS = ["--config-dir", "my_conf", "optimizer=sgd", "optimizer.lr=0.1", "seed=1", "hydra/launcher=joblib", "head.hidden=[5]"]


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / COMMAND, {"command": "", "words": WORDS})
    return tmp_path


@pytest.mark.parametrize(
    ("beside", "without"),
    [
        ([], []),
        (["seed=2"], ["seed=1"]),
        (["++seed=2"], ["seed=1"]),
        (["optimizer=adamw"], ["optimizer=sgd", "optimizer.lr=0.1"]),
        (["optimizer.lr=1"], ["optimizer.lr=0.1"]),
        (["head=mlp"], ["head.hidden=[5]"]),
        (["~head.hidden"], ["head.hidden=[5]"]),
        (["--config-dir", "other"], ["--config-dir", "my_conf"]),
        (["hydra/launcher=basic"], ["hydra/launcher=joblib"]),
        (["-m", "seed=2,3"], ["seed=1"]),
    ],
)
def test_words_beside_it_replace_those_of_the_run(run, beside, without):
    assert with_run([f"again={run}", *beside]) == [*(word for word in WORDS if word not in without), *beside]


def test_a_job_of_a_search_is_a_single_run_again_and_may_be_swept(tmp_path):
    write_json(tmp_path / COMMAND, {"command": "", "words": ["hparams_search=drop_layers", "backbone.cut=-1", "hydra.mode=RUN"]})
    assert "hydra.mode=RUN" in with_run([f"again={tmp_path}"])
    assert "hydra.mode=RUN" not in with_run(["-m", f"again={tmp_path}", "seed=1,2"])


@pytest.mark.parametrize(
    ("words", "beside", "add"),
    [
        (["data.root=photos"], [], "data.root={}/photos"),
        (["data.csv=tables/a.csv"], [], "data.csv={}/tables/a.csv"),
        (["+data.mine=tables/a.csv"], [], "+data.mine={}/tables/a.csv"),
        (["--config-dir", "photos"], [], "--config-dir {}/photos"),
        (["data.root=photos"], ["data.root=/elsewhere"], None),
        (["data=photos", "data.root=missing", "paths.runs=tables/a.csv", "data.csv=here/a.csv", f"a={'x/' * 9999}"], [], None),
    ],
)
def test_a_relative_path_that_is_in_the_folder_of_the_run_only_is_one_line(tmp_path, monkeypatch, words, beside, add):
    for file in ("began/photos/1.png", "began/tables/a.csv", "began/here/a.csv", "now/here/a.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    began, run = tmp_path / "began", tmp_path / "run"
    write_json(run / COMMAND, {"command": "", "words": words, "folder": str(began)})
    monkeypatch.chdir(tmp_path / "now")
    with nullcontext() if add is None else pytest.raises(UserError, match=rf", or add {re.escape(add.format(began))}$"):
        with_run([f"again={run}", *beside])
    monkeypatch.chdir(began)
    assert with_run([f"again={run}", *beside])


def test_other_command_lines_stay_as_they_are():
    words = ["seed=1", "data.root=again=1", "--config-name", "config"]
    assert with_run(words) == words


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ([], "is not the folder of a run"),
        (["0/job.json"], "the folder of a sweep: give the folder of a job in it, such as again="),
        (["config.yaml"], "is a run without command.json"),
    ],
)
def test_a_folder_that_cannot_be_repeated_is_an_error_with_what_to_do(tmp_path, files, line):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("_target_: ftlit.x")
    with pytest.raises(UserError, match=line):
        with_run([f"again={tmp_path}"])


def test_a_changed_byte_of_the_words_is_noticed(run):
    (run / COMMAND).write_text((run / COMMAND).read_text().replace("seed=1", "seed=7"))
    with pytest.raises(DamagedFile, match=COMMAND):
        with_run([f"again={run}"])


def test_the_config_of_a_run_as_the_config_of_hydra_names_what_works(run):
    with pytest.raises(UserError, match=f"give again={run}, with changes such as seed=1"):
        with_run(["--config-dir", str(run), "--config-name", "config", "seed=3"])


@pytest.mark.e2e
def test_a_run_again_has_the_same_settings_and_result_in_a_new_folder(tmp_path):
    first = train(tmp_path, *FAST, "head=linear", "data.batch_size=16", "report=false", "hydra.run.dir=a", "resume=auto")
    again = train(tmp_path, "again=a", "hydra.run.dir=b")
    assert first.returncode == again.returncode == 0, again.stderr
    other = train(tmp_path, "again=b", "seed=5", "hydra.run.dir=c")  # of a run that was itself one again
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "abc"]
    assert results[0] == results[1] != results[2], other.stderr
    configs = [(tmp_path / name / "config.yaml").read_text().splitlines() for name in "ac"]
    assert {line.strip() for line in set(configs[1]) - set(configs[0])} >= {"seed: 5"}
    found = json.loads((tmp_path / "c" / COMMAND).read_text())
    assert found["words"] == [*FAST, "head=linear", "data.batch_size=16", "report=false", "seed=5"]
    assert shlex.split(found["command"])[-len(found["words"]) :] == found["words"]
