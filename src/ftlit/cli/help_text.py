"""The text of `python train.py --help`: commands, frequently set values, options and groups.

Values are those of the composed config, and explanations are the comments of its files: neither is written a second time here.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import groupby, takewhile
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.cli.command_list import COMMAND_ROWS
from ftlit.cli.help_layout import HelpRow, paragraph, two_columns
from ftlit.recipes.config.hydra_internals import choices, group_options, read_config_file
from ftlit.recipes.config.overrides import typed_command

SETTINGS = (  # what people set most
    *("data.root", "data.csv", "data.val_fraction", "data.test_fraction", "data.augment", "data.mix"),
    *("data.per_class", "data.batch_size", "data.num_workers"),
    *("backbone.among", "backbone.weights", "backbone.cut", "backbone.input_spec.size"),
    *("schedule.scale", "optimizer.lr", "optimizer.weight_decay"),
    *("loss.class_weights", "trainer.max_epochs", "trainer.precision", "trainer.accumulate_grad_batches"),
    *("trainer.accelerator", "trainer.devices"),
)
OF_PROBES = ("probe.kinds", "probe.cuts", "probe.poolings", "probe.rows", "probe.repeats")  # of recipe=probe
BROUGHT_BY = {"data.root": "folder", "data.csv": "csv", "backbone.among": "auto"}  # setting -> the option of its group that has it
FLAGS = (
    ("-m, --multirun", "run a sweep: one run for each combination of comma-separated values"),
    (
        "--config-dir FOLDER",
        "add your own options from a folder: FOLDER/head/mine.yaml becomes head=mine\n"
        "FOLDER/experiment/mine.yaml begins with the line `# @package _global_`, so that it may set values of all groups",
    ),
    ("--cfg job", "print the composed config; add --resolve to replace each ${...} by its value"),
    ("--hydra-help", "flags and groups of Hydra itself"),
)
ABOUT = {"advise": "Measure, without training, which scenario suits your images, and estimate the time of each scenario."}
MANY = 20  # options of a group that are listed by family


def help_text(config: DictConfig) -> str:
    """The help for the words that `config` was composed from, its `hydra` node included; `$` is doubled, as Hydra's template needs it."""
    command = " ".join(["ftlit", "advise"] if config.recipe == "advise" and typed_command()[0] == "ftlit" else typed_command())
    parts = [
        paragraph(ABOUT.get(config.recipe, "Fine-tune a pretrained network for a new task, and report its accuracy.")),
        f"usage: {command} [FOLDER or FILE.csv] [GROUP=OPTION ...] [NAME=VALUE ...]",
        two_columns("Examples", _examples(command, advises=config.recipe == "advise")),
        two_columns("Other commands", COMMAND_ROWS),
        paragraph(
            "The values below depend on the options before --help. For example, `data=folder --help` shows the values for your own images."
        ),
        two_columns("Values that are often set", _settings(config)),
        two_columns("Options", _options(config)),
        two_columns("Groups and their options; resnet{18, 34} stands for resnet18, resnet34", _groups()),
        two_columns("Flags", FLAGS),
    ]
    return "\n\n".join(parts).replace("$", "$$")


def _examples(command: str, *, advises: bool) -> list[HelpRow]:
    rows = [
        ("", "scikit-learn's handwritten digits, with the network that comes with ftlit"),
        ("photos backbone=resnet50", "your images, in one folder per class: short for data=folder data.root=photos"),
        ("photos.csv backbone=resnet50", "images by a csv file with the columns path and label: short for data=csv data.csv=photos.csv"),
    ]
    training = [
        ("scenario=large_similar hydra.run.dir=runs/all", "train all layers; the run folder is runs/all"),
        ("again=runs/all seed=1", "the command of an earlier run once more, in a new folder, with another seed"),
        ("-m scenario=small_similar,large_similar seed=0,1,2", "a sweep over all combinations, with a table at its end"),
    ]
    return [(f"{command} {words}".rstrip(), text) for words, text in (rows if advises else rows + training)]


def _settings(config: DictConfig) -> Iterator[HelpRow]:
    for name in (*SETTINGS, *OF_PROBES) if config.recipe == "probe" else SETTINGS:
        group, key, *_ = name.split(".")
        option, brought = choices().get(group), BROUGHT_BY.get(name)
        if brought and brought != option:
            yield f"{name}=...", f"with {group}={brought}: {_comment(f'{group}/{brought}', key)}"
        elif key in (config.get(group) or {}).keys():  # a config holds no key without a value
            yield f"{name}={_shown(OmegaConf.select(config, name, default='...'))}", _comment(f"{group}/{option}", key)


def _options(config: DictConfig) -> Iterator[HelpRow]:
    """The values at the top of train.yaml, `sweep.resume` by its full name."""
    train = read_config_file("train")
    assert train is not None
    yield "hydra.run.dir=FOLDER", f"folder of the run (default: a new folder in {config.paths.runs})"
    for name, value in train.values.items():
        full_name = f"{name}.{next(iter(value))}" if isinstance(value, dict) else name
        if not group_options(name):
            yield f"{full_name}={_shown(OmegaConf.select(config, full_name))}", _comment("train", name)


def _groups() -> Iterator[HelpRow]:
    for group, chosen in reversed(choices().items()):
        if group.startswith("hydra"):
            continue
        options = [option for option in group_options(group) if not option.startswith("_")]
        about, others = _comment("train", group), options != [chosen]
        lines = families(options) if len(options) > MANY else [", ".join(options)] if others else []
        yield f"{group}={_shown(chosen)}", "\n".join(filter(None, [about, *lines]))


def families(names: Sequence[str]) -> list[str]:
    """Names by family, a text each; those without a family in one text.

    >>> families(["resnet18", "alexnet", "resnet101", "resnet50", "timm"])
    ['alexnet, timm', 'resnet{18, 50, 101}']
    """
    found = [list(same) for _, same in groupby(sorted(names, key=_in_order), key=lambda name: re.match(r"(wide_)?[a-z]+", name)[0])]  # type: ignore[index]
    alone = ", ".join(same[0] for same in found if len(same) == 1)
    return [alone, *(_family(same) for same in found if len(same) > 1)]


def _family(names: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("0123456789")
    return f"{common}{{{', '.join(name.removeprefix(common) for name in names)}}}"


def _in_order(name: str) -> list[Any]:
    """A key that sorts `resnet18` before `resnet101`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _comment(path: str, key: str) -> str:
    """The comment behind a key, or behind an entry of the defaults list, in `ftlit.conf/<path>.yaml` or a file that it begins as."""
    file = files("ftlit.conf") / f"{path}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""  # an option of --config-dir has no comment here
    if found := re.search(rf"^(?:  - )?{re.escape(key)}:.*?\s# *(.*)$", text, re.MULTILINE):
        return found[1]
    parents = (read_config_file(path) if text else None) or None
    for parent in parents.parents if parents else ():
        if comment := _comment(parent[1:] if parent.startswith("/") else f"{path.rpartition('/')[0]}/{parent}", key):
            return comment
    return ""


def _shown(value: object) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, ListConfig | list) else str(value)
