"""`--help` of all commands: complete, with the defaults of the composed config, and readable in a narrow terminal."""

import os
import re
import sys
from functools import cache

import pytest
import warm
from hydra import compose
from omegaconf import OmegaConf

from ftlit.cli.help_text import SETTINGS, families
from ftlit.cli.main import COMMANDS
from ftlit.recipes.config.hydra_internals import fresh_hydra, group_options, read_config_file

pytestmark = pytest.mark.e2e


def help_of(*words, columns=80):
    return printed(columns, *words)


@cache
def printed(columns, *words):
    command = [sys.executable, "-m", "ftlit.cli.main", *words, "--help"]
    done = warm.run(command, env={**os.environ, "COLUMNS": str(columns)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def values_in(text):
    return dict(re.findall(r"^  ([a-z][\w.]*)=(\S*)", text, re.MULTILINE))


@pytest.mark.parametrize("given", [[], ["data=folder", "optimizer=sgd", "scenario=small_similar"]])
def test_the_values_are_those_of_the_composed_config(given):
    shown = values_in(help_of("train", *given))
    with fresh_hydra():
        config, top = compose("train", given), read_config_file("train").values
    options = ["sweep.resume" if name == "sweep" else name for name in top if name != "logger"]
    lacking = {"schedule.scale"} if given else set()  # head_only has no such value
    assert {*SETTINGS, *options} - lacking <= set(shown)
    for name, value in shown.items():
        if name in (*SETTINGS, *options) and value != "...":
            assert OmegaConf.select(config, name) == OmegaConf.create(f"value: {value}").value, name
    assert {name for name, value in shown.items() if value == "..."} == {"data.root", "data.csv", "backbone.among"}


def test_every_option_of_every_group_is_shown():
    text = " ".join(help_of("train").split())
    for common, endings in re.findall(r"([\w]+)\{([^}]*)\}", text):
        text += " " + " ".join(common + ending for ending in endings.split(", "))
    names = set(re.findall(r"\w+", text))
    with fresh_hydra():
        for group in ("backbone", "head", "loss", "data", "schedule", "optimizer", "trainer", "probe", "scenario", "hparams_search"):
            assert {option for option in group_options(group) if not option.startswith("_")} <= names, group


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("words", ["", "train", "advise", "predict", "report", "export", "demo", "cache", "cache prune"])
def test_no_line_is_wider_than_the_terminal(words, columns):
    lines = help_of(*words.split(), columns=columns).splitlines()
    assert lines[0] and max(map(len, lines)) <= columns


def test_the_help_names_the_command_that_was_typed_and_the_others():
    train, advise = help_of("train"), help_of("advise")
    assert "usage: ftlit train " in train and "usage: ftlit advise " in advise
    assert advise.startswith("Measure") and train.startswith("Fine-tune")
    assert "  ftlit train photos backbone=" in train and "  ftlit advise photos.csv backbone=" in advise
    assert all(f"  ftlit {command} " in train for command in COMMANDS)


def test_the_help_of_probes_lists_their_options():
    assert {"probe.kinds", "probe.rows", "probe.repeats", "probe.cuts", "probe.poolings"} <= set(
        values_in(help_of("train", "recipe=probe"))
    )


def test_the_help_says_how_the_file_of_an_experiment_begins():
    assert "FOLDER/experiment/mine.yaml begins with the line `# @package _global_`" in " ".join(help_of("train").split())


def test_families_are_complete_and_do_not_split_numbers():
    names = ["resnet18", "resnet101", "vgg11", "vgg11_bn", "wide_resnet50_2", "wide_resnet101_2", "timm"]
    found = families(names)
    assert found == ["timm", "resnet{18, 101}", "vgg{11, 11_bn}", "wide_resnet{50_2, 101_2}"]
