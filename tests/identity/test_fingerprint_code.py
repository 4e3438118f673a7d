"""Fingerprints of functions and classes: their code and all that it refers to, but not comments, docstrings or module paths."""

import importlib
import sys

import numpy as np
import pytest
import torch
from fingerprint_examples import Node, double
from torch import nn

from ftlit.errors import UserError
from ftlit.identity.fingerprint import fingerprint


def test_functions_differ_by_code_constants_defaults_and_closures():
    def scaled(factor):
        return lambda x: x * factor

    def with_default(x, y=1):
        return x

    def with_other_default(x, y=2):
        return x

    with_other_default.__qualname__ = with_default.__qualname__
    functions = [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x: abs(x), lambda x: len(x), scaled(2), scaled(3)]
    functions += [with_default, with_other_default, double, Node("a").__init__, Node("b").__init__, abs, len, "a".upper, "b".upper]
    functions += [lambda: lambda: 1, lambda: lambda: 2, torch.relu, torch.sigmoid, np.sin, np.cos]
    assert len({fingerprint(function) for function in functions}) == len(functions)
    assert fingerprint(scaled(2)) == fingerprint(scaled(2))


def function_of(source: str):
    space: dict = {"__name__": "__nowhere__"}
    exec(source, space)
    return space["f"]


@pytest.mark.parametrize(
    "expressions",
    [
        ("x in y", "x not in y"), ("x is y", "x is not y"), ("x < y", "x <= y"), ("g(x, k=y)", "g(x, j=y)"), ("g(x)", "g(x, y)"),
        ("[x]", "[x, y]"), ("f'{x!r}'", "f'{x!s}'", "f'{x}'"), ("x if y else 1", "1 if y else x"), ("x[1:]", "x[:1]"),
        ("x and y", "x or y"), ("{x}", "[x]", "{x: y}"), ("-x", "+x", "~x", "not x"), ("lambda: x", "lambda: y"), ("x.a", "x.b", "x.a()"),
    ],
)  # fmt: skip
def test_functions_that_differ_in_one_operation_have_different_fingerprints(expressions):
    functions = [function_of(f"def f(x, y):\n    return {expression}") for expression in expressions]
    assert len({fingerprint(function) for function in functions}) == len(expressions)


NESTED = """
def f(x):
{before}
    class Inner:
        {doc}
        if x:
            y = {y}
        else:
            y = 2
    return Inner
"""


def test_docstring_line_and_module_of_a_nested_class_do_not_change_the_fingerprint():
    plain = {"before": "", "doc": "", "y": 1}
    same = [{}, {"doc": '"""Why."""'}, {"before": "    # a comment\n\n"}, {"before": "    'of the function'\n"}]
    functions = [function_of(NESTED.format(**(plain | change))) for change in same]
    functions[0].__globals__["__name__"] = "moved"
    assert len({fingerprint(function) for function in functions}) == 1
    assert fingerprint(function_of(NESTED.format(**(plain | {"y": 3})))) != fingerprint(functions[0])


def test_a_function_may_close_over_itself_or_an_unset_name():
    def count(n):
        return n and count(n - 1)

    def unset():
        if not count:
            never = 1
        return lambda: never

    assert fingerprint(count) == fingerprint(count) and fingerprint(unset()) == fingerprint(unset())


def instance_of(source: str, module: str):
    """Return an instance of a class that is defined nowhere on disk, as in a notebook."""
    space = {"__name__": module, "nn": nn}
    exec(source, space)
    return space["Own"]()


CELL = "class Own(nn.Module):\n    def forward(self, x):\n        return {}\n    @property\n    def two(self):\n        return {}\n"


def test_a_class_without_a_file_is_identified_by_the_code_of_its_methods():
    cells = [CELL.format(*bodies) for bodies in (("x + 1", "2"), ("x + 2", "2"), ("abs(x)", "2"), ("x + 1", "3"))]
    assert len({fingerprint(instance_of(cell, "__nowhere__")) for cell in cells}) == 4
    assert fingerprint(instance_of(cells[0], "__nowhere__")) == fingerprint(instance_of("\n\n" + cells[0], "__nowhere__"))


BASE = """
from torch import nn
class Base(nn.Module):
    def forward(self, x):
        {doc}
        return {result}
"""
CHILD = """
import functools, torch, users_base
from users_base import Base
{comment}
SIZE, MEAN, UNUSED = {size}, [0.5, {mean}], {unused}
resize = torch.nn.Upsample({size})
def inner(x):
    return x * {inner}
@functools.cache
def cached():
    return {cached}
class Net(Base):
    gain = {gain}
def work(x):
    return [inner(part) + MEAN[0] for part in x[:SIZE]]
def through_a_module(x):
    return users_base.Base()(x) + cached()
def resized(x):
    return resize(x)
def untouched(x):
    return abs(x)
class Transform:
    def __call__(self, x):
        return self.crop(x)
    @staticmethod
    def crop(x):
        return work(x)
"""
SAME = {
    "doc": "", "result": "x", "comment": "", "size": 1, "mean": 0.1, "unused": 1, "inner": 3, "cached": 4, "gain": 5,
}  # fmt: skip
# change -> objects whose fingerprints change
USERS_CHANGES = {
    "nothing": ({}, set()),
    "comment": ({"comment": "# why"}, set()),
    "docstring": ({"doc": '"""Why."""'}, set()),
    "unused global": ({"unused": 2}, set()),
    "base class": ({"result": "x + 1"}, {"Net", "through_a_module"}),
    "global number": ({"size": 2}, {"work", "Transform", "resized"}),
    "global list": ({"mean": 0.2}, {"work", "Transform"}),
    "called function": ({"inner": 4}, {"work", "Transform"}),
    "cached function": ({"cached": 5}, {"through_a_module"}),
    "class attribute": ({"gain": 6}, {"Net"}),
}


@pytest.mark.parametrize("change", USERS_CHANGES)
def test_users_code_is_identified_with_all_that_it_names_but_without_comments_and_docstrings(tmp_path, monkeypatch, change):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def found(settings):
        for name, text in (("users_base", BASE), ("users_child", CHILD)):
            (tmp_path / f"{name}.py").write_text(text.format(**settings))
            monkeypatch.delitem(sys.modules, name, raising=False)  # as in a new process
        importlib.invalidate_caches()
        child = importlib.import_module("users_child")
        functions = ("work", "through_a_module", "resized", "untouched")
        things = {name: getattr(child, name) for name in functions} | {"Net": child.Net(), "Transform": child.Transform()}
        return {name: fingerprint(thing) for name, thing in things.items()}

    settings, expected = USERS_CHANGES[change]
    before, after = found(SAME), found({**SAME, **settings})
    assert {name for name in before if before[name] != after[name]} == expected
    assert len(set(before.values())) == len(before)


GLOBAL = """
import argparse, io, logging, re, threading
from collections import defaultdict, deque
from decimal import Decimal
from types import SimpleNamespace
import numpy as np
class Config:
    def __init__(self, size):
        self.size = size
class Table(dict):
    def __missing__(self, key):
        return {inside}
SETTING = {setting}
class Holder:
    setting, method, constant = SETTING, staticmethod(SETTING), property(SETTING)
def f(x):
    return x, SETTING{body}
"""


def function_with_global(setting: str, inside: int = 0, body: str = ""):
    return function_of(GLOBAL.format(setting=setting, inside=inside, body=body))


@pytest.mark.parametrize(
    "setting",
    [
        "SimpleNamespace(size={})", "argparse.Namespace(size={})", "Config({})", "re.compile('{}')", "np.float32({})", "Decimal({})",
        "deque([{}])", "[Config({}), 1]", "dict(a=re.compile('{}'))", "defaultdict(int, a={})", "Table(a={})", "(Decimal({}),)",
        "dict(a=None, b=[dict(c=Config({}))])", "np.arange({})", "set([Decimal({})])",
    ],
)  # fmt: skip
def test_every_value_that_users_code_refers_to_changes_the_fingerprint(setting):
    found = [function_with_global(setting.format(number)) for number in (1, 2, 1)]
    for things in (found, [function.__globals__["Holder"] for function in found]):
        assert fingerprint(things[0]) == fingerprint(things[2]) != fingerprint(things[1])


def test_the_class_and_the_default_of_a_mapping_change_the_fingerprint():
    assert fingerprint(function_with_global("Table(a=1)", inside=1)) != fingerprint(function_with_global("Table(a=1)", inside=2))
    assert fingerprint(function_with_global("defaultdict(int, a=1)")) != fingerprint(function_with_global("defaultdict(list, a=1)"))


@pytest.mark.parametrize(
    "states", [("logging.getLogger('a')", "logging.getLogger('b')"), ("threading.Lock()", "threading.RLock()"), ("{}", "dict()"),
               ("io.StringIO('a')", "io.StringIO('b')")]
)  # fmt: skip
def test_loggers_locks_open_files_and_empty_containers_do_not_change_the_fingerprint(states):
    assert len({fingerprint(function_with_global(state)) for state in states}) == 1


def test_a_referenced_value_that_cannot_be_fingerprinted_is_an_error():
    with pytest.raises(UserError, match=r"generator cannot be hashed .*: give cache=none$"):
        fingerprint(function_with_global("(i for i in range(3))"))


SIZE = 8


def test_a_plain_global_of_a_function_changes_the_fingerprint(monkeypatch):
    def crop(image):
        return image[:SIZE]

    before = fingerprint(crop)
    monkeypatch.setitem(globals(), "SIZE", 16)
    assert fingerprint(crop) != before
