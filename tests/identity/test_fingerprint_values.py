"""Fingerprints of plain values and objects: equal exactly if the values are equal, types and order included."""

import os
import re
import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fingerprint_examples import Node, Scale, double
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from ftlit.errors import UserError
from ftlit.identity.fingerprint import fingerprint

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.text().map(Path)
hashable = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
values = st.recursive(
    leaves | st.frozensets(hashable),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass
class Settings:
    name: str = "a"
    sides: list = field(default_factory=lambda: [1, 2])


@dataclass(frozen=True, slots=True)
class Slotted:
    name: str = "a"


class Colour(Enum):
    RED = 1
    BLUE = 2


class Marks(Flag):
    BOLD = auto()
    WIDE = auto()


def spelled(value) -> str:
    """Return a text that is equal for two values exactly if they are equal, types and order included."""
    if isinstance(value, frozenset):
        return f"set{sorted(map(spelled, value))}"
    if isinstance(value, dict):
        return f"dict{[(spelled(key), spelled(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[spelled(item) for item in value]}"
    return f"{type(value).__name__}{value!r}"


@given(values)
def test_a_copy_has_the_same_fingerprint(value):
    assert fingerprint(value) == fingerprint(deepcopy(value))


@given(values, values)
def test_fingerprints_are_equal_exactly_if_the_values_are_equal(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (spelled(one) == spelled(other))


@given(st.lists(st.text("ab:<>0 '\"path"), max_size=3), st.lists(st.text("ab:<>0 '\"path"), max_size=3))
def test_texts_and_paths_cannot_imitate_the_encoding(one, other):
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)
    assert fingerprint(*map(Path, ["x", "y:0><path z"])) != fingerprint(*map(Path, ["x:0><path y", "z"]))
    assert fingerprint(one, other) != fingerprint([*one, *other])


@given(st.lists(hashable, unique=True), st.randoms())
def test_the_order_of_a_mapping_counts_and_that_of_a_set_does_not(items, random):
    shuffled = random.sample(items, len(items))
    assert fingerprint(set(items)) == fingerprint(frozenset(shuffled)) == fingerprint(set(shuffled))
    one, other = (dict.fromkeys(map(repr, order)) for order in (items, shuffled))
    assert (fingerprint(one) == fingerprint(other)) == (list(one) == list(other))


def test_similar_values_have_different_fingerprints():
    things = [0, 0.0, -0.0, False, None, "", "0", b"", b"0", (), [], {}, set(), [0], (0,), [[]], [None]]
    things += [1, True, 1.0, "None", Path(), Path("0"), range(2), slice(2), re.compile("a"), re.compile("a", re.I)]
    things += [torch.zeros(1), torch.zeros(1, 1), np.zeros(1), np.float32(0), np.float64(0), torch.float32, torch.float16]
    things += [Colour.RED, Colour.BLUE, Marks(0), Marks.BOLD, Marks.BOLD | Marks.WIDE, Colour, Marks]
    things += [Settings(), Settings("b"), Settings(sides=[1]), Slotted(), Slotted("b"), Node(), Node("b"), Settings, Node, Ellipsis, re, os]
    things += [partial(double), partial(double, 1), partial(double, x=1), partial(sorted, key=len), partial(sorted, key=abs)]
    things += [torch.channels_last, torch.contiguous_format, torch.device("cpu"), torch.device("meta"), float("nan"), float("inf")]
    things += [np.array([1, "a"], object), np.array([1, "b"], object), nn.LSTM(1, 1), v2.functional.InterpolationMode.BICUBIC, 10**30]
    assert len({fingerprint(thing) for thing in things}) == len(things)


def test_equal_objects_have_equal_fingerprints():
    for make in (Settings, Slotted, Node, lambda: partial(double, 1), lambda: np.array([1, "a"], object), lambda: Marks.BOLD | Marks.WIDE):
        assert fingerprint(make()) == fingerprint(make()) == fingerprint(deepcopy(make()))


def ring(name: str) -> Node:
    first, second = Node(name), Node()
    first.next, second.next = second, first
    return first


def peers(name: str) -> Node:
    node = Node(name)
    node.peers = {node, 1, "a"}
    return node


def nested(name: str) -> list:
    inner: list = [name]
    inner.append(inner)
    return inner


class Parental(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.child = Scale()
        self.child.parents, self.name = [self], name


@pytest.mark.parametrize("make", [ring, peers, nested, Parental])
def test_recursive_objects_can_be_fingerprinted(make):
    assert fingerprint(make("a")) == fingerprint(make("a")) != fingerprint(make("b"))


def deep() -> list:
    value: list = []
    for _ in range(5000):
        value = [value]
    return value


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer versions of torch
        return torch.jit.script(nn.ReLU())


@pytest.mark.parametrize(
    "make",
    [
        lambda: sys.__stderr__, lambda: (i for i in range(3)), deep, lambda: torch.zeros(2, device="meta"), scripted,
        lambda: torch.eye(2).to_sparse(), lambda: memoryview(b"a"),
    ],
)  # fmt: skip
def test_the_error_for_an_unsupported_object_is_one_line_also_if_it_is_nested(make):
    thing = make()
    model = Scale()
    model.__dict__["held"] = thing
    for holder in (thing, [thing], {"a": thing}, model, lambda: thing):
        with pytest.raises(
            UserError,
            match=r"^features cannot be cached, because the content of an object of type \w+ cannot be hashed .*: give cache=none$",
        ) as error:
            fingerprint(holder)
        assert len(str(error.value).splitlines()) == 1
