"""Names at the top of a config that nothing would read are errors, from the command line and from config files."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import warm
from hydra import compose
from omegaconf import OmegaConf

from ftlit.errors import UserError
from ftlit.recipes.checks.config_names import check_names
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config


def check(folder: Path, content: str, words: Sequence[str] = ()) -> None:
    """Check the names of the config that the command line composes with this experiment."""
    (folder / "experiment").mkdir()
    (folder / "experiment/own.yaml").write_text(f"# @package _global_\n{content}\n")
    with fresh_hydra():
        search = f"hydra.searchpath=[file://{folder}]"
        cfg = compose("train", overrides=["paths.run=run", search, "experiment=own", *words], return_hydra_config=True)
        with use_hydra_config(cfg):
            check_names(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))


@pytest.mark.parametrize(
    ("group", "option"), [("scenario", "large_similar"), ("schedule", "top_down"), ("pretrain", "rbm"), ("debug", "fast")]
)
@pytest.mark.parametrize("words", [[], ["schedule=all_at_once"]])
def test_an_option_that_an_experiment_gives_as_a_value_names_the_line_to_write(group, option, words, tmp_path):
    message = (
        f"`{group}: {option}` in a config file chooses no option, because {group} is a config group: write `- override /{group}: {option}`"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check(tmp_path, f"seed: 1\n{group}: {option}", words)


@pytest.mark.parametrize(
    ("content", "meant"), [("sede: 1", "seed"), ("train: {max_epochs: 1}", "trainer"), ("scenarios: auto", "scenario")]
)
def test_a_mistyped_name_in_an_experiment_is_an_error(content, meant, tmp_path):
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        check(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: pets\ndata: {augment: '${name}'}", ()),
        ("name: pets", ["hydra.run.dir=runs/${name}"]),
        ("defaults: [override /scenario: large_similar, override /schedule: top_down]\noptimizer: {lr: 1.0}\npretrain: null", ()),
    ],
)
def test_values_that_are_read_and_options_in_the_defaults_list_pass(content, words, tmp_path):
    check(tmp_path, content, words)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("-m seed=1,2 hydra.run.dir=x", "hydra.run.dir=x is the folder of a single run, and a sweep ignores it: give hydra.sweep.dir=x"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x is the folder of a sweep, and a single run ignores it: add -m for a sweep, or give hyd"),
        (
            "recipe=pretrain pretrain=autoencoder trainer.max_epochs=1",
            "which trains each layer by itself: give pretrain.epochs=1 (docs",
        ),
        (
            "recipe=pretrain pretrain=rbm optimizer.lr=1",
            "optimizer.lr=1 has no effect with pretrain=rbm, which trains each layer by itself",
        ),
        ("recipe=pretrain pretrain=rbm head=mlp", ": leave head=mlp out (docs/pretraining.md#options-of-the-training)"),
        ("pretrain=rbm", "pretrain=rbm has an effect with recipe=pretrain only: give recipe=pretrain too, or leave pretrain=rbm out"),
    ],
)
def test_options_that_the_command_would_ignore_are_refused_and_nothing_is_written(words, line, tmp_path):
    done = warm.run([sys.executable, "-m", "ftlit.cli.train", *words.split()], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and line in done.stderr
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.e2e
def test_the_error_names_the_file_of_the_experiment(tmp_path):
    (tmp_path / "c/experiment").mkdir(parents=True)
    for name, content in (("plain", "scenario: large_similar"), ("typo", "sede: 1")):
        (tmp_path / f"c/experiment/{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    plain, typo = (
        warm.run([sys.executable, "-m", "ftlit.cli.train", "--config-dir", "c", f"experiment={name}"], cwd=tmp_path)
        for name in ("plain", "typo")
    )
    assert plain.returncode == typo.returncode == 2
    assert plain.stderr.startswith("ftlit: `scenario: large_similar` in experiment/plain.yaml chooses no option")
    assert typo.stderr.startswith("ftlit: experiment/typo.yaml sets sede, but there is no option 'sede': did you mean 'seed'?")
