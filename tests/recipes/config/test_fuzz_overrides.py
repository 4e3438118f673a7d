"""Odd command lines are composed, bound and checked, as before anything is built: an error of one line, or values in their ranges."""

import random
import sys
import time
from contextlib import ExitStack

import pytest
from composed_configs import EVERY, NEEDED
from hydra import compose
from omegaconf import DictConfig

from ftlit.cli.command_words import complete
from ftlit.errors import UserError
from ftlit.recipes.checks.ranges import numbers_in, range_of
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config
from ftlit.recipes.config.synonyms import OPTIONS

MAX_SECONDS = 30  # of one command line
NUMBERS = (
    *("0", "-1", "1e400", "-1e-9", "nan", "inf", "-inf", "1e20", "100000000000000000000"),
    *("0.5", "1.5", "007", "1_0", "0x10", "1e-400", "+3", ".5"),
)
TEXTS = (
    *("null", "true", "", "''", "???", "[]", "[1,2]", "[[1],[2]]", "{}", "{a: 1}", "a b", "a,b", "1,2", "a=b", "a:b", "yes", "None"),
    *("(", ")", "[", "}", "'", '"', "\\", ";", "=", "#", "~", "*", "-", "--", "@", "%s", "{x}", "../..", "/dev/null", "nul\x01l"),
    *("${seed}", "${nowhere}", "${", "$5", "${oc.env:HOME}", "größe", "写真", "📷", "x" * 300, "!!python/object:os.system"),
    *("choice(1,2)", "range(3)", "glob(*)", "int(3)", "str(3)"),
)
SHAPES = (
    *("{name}={value}", "+{name}={value}", "++{name}={value}", "~{name}", "{name}"),
    *("{name}:{value}", "--{name}={value}", "{name} = {value}"),
)
WRONG = (
    *("trainer.max_epoch", "lr", "scenaro", "data.rot", "backbone.wieghts", "a.b.c", "seed.x"),
    *("hydra.nothing", "_target_", "head._target_", ""),
)


@pytest.fixture
def hydra():
    """Initialize Hydra as the command line does."""
    with fresh_hydra():
        yield


def names_in(node, prefix=""):
    """The names of all values in a config."""
    for key in node:
        name = f"{prefix}{key}"
        yield name
        if not prefix and key == "hydra":
            continue
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_missing():
            yield from names_in(child, f"{name}.")


def fuzzed(number, seed):
    """Command lines of one or two odd words, some after an option of a group."""
    draw = random.Random(seed)
    known = [name for name in names_in(compose("train", ["paths.run=somewhere"])) if not name.startswith("hydra")]
    for _ in range(number):
        group, option = draw.choice(EVERY)
        chosen = [f"{group}={option}", *NEEDED.get((group, option), [])] if draw.random() < 0.4 else []
        names = names_in(compose("train", ["paths.run=somewhere", *chosen])) if chosen else ()
        own = [name for name in names if name.startswith(f"{group}.")]
        words = []
        for _ in range(draw.choice((1, 1, 2))):
            name = draw.choice(draw.choice((own or known, known, known, WRONG, [*OPTIONS])))
            shape = draw.choice(SHAPES) if draw.random() < 0.3 else SHAPES[0]
            words.append(shape.format(name=name, value=draw.choice(draw.choice((NUMBERS, TEXTS)))))
        yield [*chosen, *words]


def outcome(words, monkeypatch):
    """The composed config, or the line that the user reads. Raises what is a fault of the program."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    try:
        with ExitStack() as stack:
            cfg = compose("train", complete(["paths.run=somewhere", *words]), return_hydra_config=True)
            stack.enter_context(use_hydra_config(cfg))
            bind(cfg)
        return cfg
    except UserError as error:
        return str(error)
    except Exception as error:
        line = as_user_error(error)
        if line is None:
            raise
        return str(line)


def check(words, monkeypatch):
    begin = time.monotonic()
    found = outcome(words, monkeypatch)
    assert time.monotonic() - begin < MAX_SECONDS
    if isinstance(found, str):
        assert found and "\n" not in found and "Traceback" not in found
        return
    outside = {name: value for name, value in numbers_in(found) if (allowed := range_of(name)) is not None and value not in allowed}
    assert not outside


def check_all(number, seed, monkeypatch):
    faults = {}
    for words in list(fuzzed(number, seed)):
        with fresh_hydra():
            try:
                check(words, monkeypatch)
            except Exception as error:
                faults[" ".join(words)] = f"{type(error).__name__}: {str(error)[:200]}"
    assert not faults, "\n".join(f"{words}: {fault}" for words, fault in faults.items())


def test_odd_command_lines_are_errors_of_one_line(hydra, monkeypatch):
    check_all(40, 0, monkeypatch)


@pytest.mark.slow
def test_many_odd_command_lines_are_errors_of_one_line(hydra, monkeypatch):
    check_all(600, 1, monkeypatch)
