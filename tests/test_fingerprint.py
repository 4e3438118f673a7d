"""Fingerprints are equal if weights, parameters and code are equal, in any process, and differ if one of them differs."""

import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections import OrderedDict
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import Enum, Flag, auto
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import fx, nn
from torchvision.transforms import v2

from ftlit.code_identity import identity
from ftlit.data.images import image_reader, read_image
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform
from ftlit.errors import UserError
from ftlit.finetuning.freeze import hold_modes, modes_of, set_trainable
from ftlit.fingerprint import fingerprint, of_array, of_bytes, of_tensor, prefixes, software
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.zoo import load_backbone


class Scale(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Shift(Scale):
    pass


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


class Node:
    def __init__(self, name: str = "a") -> None:
        self.name = name


def double(x):
    return x * 2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Scale(), nn.Dropout(0.5))


# --- the same


THINGS = """
import torch
from functools import partial
from ftlit.data.images import image_reader
from ftlit.fingerprint import fingerprint
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.zoo import load_backbone
torch.manual_seed(0)
names = {"a", "b", "c", "layer1", "layer2"}
things = [names, frozenset(names), {"b": 1, "a": {2.5, None}}, partial(sorted, key=len), InputSpec(), eval_transform(InputSpec())]
things += [train_transform(InputSpec(), "trivial_augment"), image_reader(InputSpec()), load_backbone("glyph"), torch.nn.LSTM(2, 3)]
"""


def test_a_process_with_another_hash_seed_computes_the_same():
    here: dict = {}
    exec(THINGS, here)
    program = THINGS + "print(*(fingerprint(thing) for thing in things))"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [fingerprint(thing) for thing in here["things"]]


def test_every_fingerprint_has_32_hexadecimal_digits():
    for found in (fingerprint(), fingerprint(net()), of_bytes(b""), of_array(np.zeros(0)), of_tensor(torch.zeros(0))):
        assert re.fullmatch("[0-9a-f]{32}", found)


def all_frozen(model: nn.Module) -> nn.Module:
    set_trainable(model, ["0"], "frozen_stats")
    return model


def held(model: nn.Module) -> nn.Module:
    set_trainable(model, ["1"])
    hold_modes(modes_of(model))
    return model


def stepped(model: nn.Module) -> nn.Module:
    model.eval()(torch.ones(2, 3, 4, 4)).sum().backward()
    return model


@pytest.mark.parametrize(
    "change",
    [
        deepcopy, nn.Module.eval, all_frozen, held, stepped, lambda m: deepcopy(held(m)), lambda m: m.requires_grad_(False),
        lambda m: m.to(memory_format=torch.channels_last), lambda m: m.to(torch.float64).to(torch.float32), lambda m: m.share_memory(),
    ],
)  # fmt: skip
def test_mode_requires_grad_and_memory_do_not_count(change):
    assert fingerprint(change(net())) == fingerprint(net())


def test_building_saving_and_calling_do_not_change_a_backbone(tmp_path):
    backbone = load_backbone("glyph")
    before = fingerprint(backbone)
    backbone.eval()(torch.zeros(1, 3, 32, 32))
    torch.save(backbone, tmp_path / "whole.pt")
    assert before == fingerprint(backbone) == fingerprint(load_backbone("glyph"))
    assert before == fingerprint(torch.load(tmp_path / "whole.pt", weights_only=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_a_tensor_is_its_values_shape_and_dtype_in_any_memory_layout(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    x = x > 0 if dtype == torch.bool else x.mul(3).to(dtype)
    assert of_tensor(x) == of_tensor(x.to(memory_format=torch.channels_last)) == of_tensor(x.repeat(1, 1, 1, 2)[..., :5])
    assert of_tensor(x[:, 1:2]) == of_tensor(x[:, 1:2].clone())
    assert of_tensor(x[0, 0, :1, 0]) == of_tensor(x[0, 0, 0, 0].reshape(1).clone())
    different = [x, x.reshape(3, 2, 4, 5), x.transpose(0, 1), x.flatten(), x.to(torch.complex128)]
    assert len({of_tensor(t) for t in different}) == len(different)


def test_a_lazily_conjugated_or_negated_tensor_is_its_values():
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert of_tensor(x.conj()) == of_tensor(torch.tensor([1 - 2j, 3 + 1j]))
    assert of_tensor(x.conj().imag) == of_tensor(torch.tensor([-2.0, 1.0]))


def test_an_array_is_its_values_shape_and_dtype_in_any_memory_layout():
    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert of_array(a) == of_array(np.asfortranarray(a)) == of_array(np.repeat(a, 2, axis=1)[:, ::2])
    assert len({of_array(b) for b in (a, a.T, a.reshape(4, 3), a.astype(np.int64), a.view(np.uint32), a.ravel())}) == 6


# --- another


def weight(m):
    m[0].weight.data[0, 0, 0, 0] += 1e-6


def statistic(m):
    m[1].running_mean[3] += 1e-6


def count(m):
    m[1].num_batches_tracked += 1


def hooked(m):
    m[2].register_forward_hook(lambda module, args, out: out + 1)


def hooked_before(m):
    m[2].register_forward_pre_hook(lambda module, args: args[0] + 1)


def scaling(factor):
    return lambda module, args, out: out * factor


def times(factor, module, args, out):
    return out * factor


def replaced(m):
    m[3].forward = double


CHANGES = {
    "weight": weight, "buffer": statistic, "count": count, "hook": hooked, "hook before": hooked_before, "forward": replaced,
    "hook that closes over a number": lambda m: m[2].register_forward_hook(scaling(2.0)),
    "over another": lambda m: m[2].register_forward_hook(scaling(5.0)),
    "hook with a tensor": lambda m: m[2].register_forward_hook(partial(times, torch.ones(1))),
    "with another": lambda m: m[2].register_forward_hook(partial(times, torch.zeros(1))),
    "eps": lambda m: setattr(m[1], "eps", 1e-3),
    "stride": lambda m: setattr(m[0], "stride", (2, 2)),
    "own attribute": lambda m: setattr(m[3], "factor", 2.5),
    "new attribute": lambda m: setattr(m[3], "other", 1),
    "class": lambda m: m.__setitem__(3, Shift()),
    "class of the same shape": lambda m: m.__setitem__(2, nn.ReLU6()),
    "in place": lambda m: setattr(m[2], "inplace", True),
    "dropout": lambda m: setattr(m[4], "p", 0.25),
    "no bias": lambda m: setattr(m[0], "bias", None),
    "buffer from parameter": lambda m: (m[1].__delattr__("bias"), m[1].register_buffer("bias", torch.zeros(4))),
    "a layer less": lambda m: m.__delitem__(4),
    "dtype": lambda m: m.to(torch.float64),
    "folded": batchnorm_to_affine,
}  # fmt: skip


def test_each_change_of_a_module_gives_another_fingerprint():
    found = {"none": fingerprint(net())}
    for name, change in CHANGES.items():
        model = net()
        change(model)
        found[name] = fingerprint(model)
    assert len(set(found.values())) == len(found)


class Pictures(torch.utils.data.Dataset):
    def __init__(self, root="here", kind="rgb", loader=abs, samples=(1, 2)):
        self.root, self.kind, self.loader, self.samples = root, kind, loader, list(samples)


def test_of_a_data_set_its_way_of_loading_counts_and_neither_images_nor_root():
    plain = fingerprint(Pictures())
    assert plain == fingerprint(Pictures(root="there")) == fingerprint(Pictures(samples=range(9)))
    assert len({plain, fingerprint(Pictures(kind="thermal")), fingerprint(Pictures(loader=float))}) == 3


def test_the_order_and_the_names_of_layers_matter():
    a, b = Scale(2.0), Scale(3.0)
    nets = [nn.Sequential(a, b), nn.Sequential(b, a), nn.Sequential(OrderedDict(x=a, y=b)), nn.ModuleList([a, b])]
    assert len({fingerprint(one) for one in nets}) == 4


SPECS = [
    {"size": 32}, {"resize": 256}, {"mean": (0.5, 0.456, 0.406)}, {"std": (0.229, 0.224, 0.5)}, {"interpolation": "bicubic"},
]  # fmt: skip


@pytest.mark.parametrize("of", [lambda s: s, eval_transform, train_transform])
def test_every_parameter_of_the_input_counts_also_in_the_transforms(of):
    kept = [fingerprint(of(InputSpec())), *(fingerprint(of(replace(InputSpec(), **spec))) for spec in SPECS)]
    assert len(set(kept)) == len(kept) - (of is train_transform)  # it does not resize
    assert fingerprint(of(InputSpec())) == kept[0]


def test_every_augmentation_and_scale_differs_and_none_is_the_evaluation_view():
    found = {augment: fingerprint(train_transform(InputSpec(), augment)) for augment in AUGMENTS}
    assert len(set(found.values())) == len(AUGMENTS) and found["none"] == fingerprint(eval_transform(InputSpec()))
    assert fingerprint(train_transform(InputSpec(), min_scale=0.5)) != found["photo"]


def test_the_reader_of_an_image_counts():
    readers = [read_image, image_reader(InputSpec()), image_reader(InputSpec(size=32)), partial(read_image, at_least=None)]
    assert len({fingerprint(reader) for reader in readers}) == 4
    assert fingerprint(image_reader(InputSpec())) == fingerprint(image_reader(InputSpec()))


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
def test_functions_that_differ_in_one_operation_differ(expressions):
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


def test_of_a_class_inside_a_function_neither_docstring_nor_line_nor_module_count():
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


def written(source: str, module: str):
    """As a notebook's cell defines it: nowhere on disk."""
    space = {"__name__": module, "nn": nn}
    exec(source, space)
    return space["Own"]()


CELL = "class Own(nn.Module):\n    def forward(self, x):\n        return {}\n    @property\n    def two(self):\n        return {}\n"


def test_a_class_without_a_file_is_identified_by_the_code_of_its_methods():
    cells = [CELL.format(*bodies) for bodies in (("x + 1", "2"), ("x + 2", "2"), ("abs(x)", "2"), ("x + 1", "3"))]
    assert len({fingerprint(written(cell, "__nowhere__")) for cell in cells}) == 4
    assert fingerprint(written(cells[0], "__nowhere__")) == fingerprint(written("\n\n" + cells[0], "__nowhere__"))


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
# change -> what of the users' code has another fingerprint then
USERS_CHANGES = {
    "nothing": ({}, set()),
    "comment": ({"comment": "# why"}, set()),
    "docstring": ({"doc": '"""Why."""'}, set()),
    "what nobody uses": ({"unused": 2}, set()),
    "base class": ({"result": "x + 1"}, {"Net", "through_a_module"}),
    "global number": ({"size": 2}, {"work", "Transform", "resized"}),
    "global list": ({"mean": 0.2}, {"work", "Transform"}),
    "called function": ({"inner": 4}, {"work", "Transform"}),
    "cached function": ({"cached": 5}, {"through_a_module"}),
    "class attribute": ({"gain": 6}, {"Net"}),
}


@pytest.mark.parametrize("change", USERS_CHANGES)
def test_a_users_code_counts_with_what_it_reaches_by_name_and_neither_comments_nor_docstrings(tmp_path, monkeypatch, change):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def found(settings):
        for name, text in (("users_base", BASE), ("users_child", CHILD)):
            (tmp_path / f"{name}.py").write_text(text.format(**settings))
            monkeypatch.delitem(sys.modules, name, raising=False)  # as a new process would find it
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


def reading(setting: str, inside: int = 0, body: str = ""):
    return function_of(GLOBAL.format(setting=setting, inside=inside, body=body))


@pytest.mark.parametrize(
    "setting",
    [
        "SimpleNamespace(size={})", "argparse.Namespace(size={})", "Config({})", "re.compile('{}')", "np.float32({})", "Decimal({})",
        "deque([{}])", "[Config({}), 1]", "dict(a=re.compile('{}'))", "defaultdict(int, a={})", "Table(a={})", "(Decimal({}),)",
        "dict(a=None, b=[dict(c=Config({}))])", "np.arange({})", "set([Decimal({})])",
    ],
)  # fmt: skip
def test_every_value_that_a_users_code_reaches_counts(setting):
    found = [reading(setting.format(number)) for number in (1, 2, 1)]
    for things in (found, [function.__globals__["Holder"] for function in found]):
        assert fingerprint(things[0]) == fingerprint(things[2]) != fingerprint(things[1])


def test_the_class_of_a_mapping_and_its_default_count():
    assert fingerprint(reading("Table(a=1)", inside=1)) != fingerprint(reading("Table(a=1)", inside=2))
    assert fingerprint(reading("defaultdict(int, a=1)")) != fingerprint(reading("defaultdict(list, a=1)"))


@pytest.mark.parametrize(
    "states", [("logging.getLogger('a')", "logging.getLogger('b')"), ("threading.Lock()", "threading.RLock()"), ("{}", "dict()"),
               ("io.StringIO('a')", "io.StringIO('b')")]
)  # fmt: skip
def test_loggers_locks_open_files_and_empty_containers_do_not_count(states):
    assert len({fingerprint(reading(state)) for state in states}) == 1


def test_a_reached_value_that_cannot_be_fingerprinted_is_an_error():
    with pytest.raises(UserError, match=r"generator cannot be fingerprinted .*; take cache=none$"):
        fingerprint(reading("(i for i in range(3))"))


@pytest.mark.parametrize(
    ("origin", "counts"),
    [(None, False), ({"url": "file:///a", "dir_info": {}}, True), ({"url": "git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}, False)],
)
def test_a_package_counts_by_its_version_unless_it_was_installed_from_a_folder(tmp_path, monkeypatch, origin, counts):
    found = []
    for i, gain in enumerate((2, 3)):
        name, site = f"installed_{origin and len(origin['url'])}_{i}", tmp_path / str(i) / "site-packages"
        metadata = site / f"{name}-0.1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        if origin:
            (metadata / "direct_url.json").write_text(json.dumps(origin))
        (site / f"{name}.py").write_text(f"GAIN = {gain}\ndef scaled(x):\n    return x * GAIN\n")
        monkeypatch.syspath_prepend(site)
        scaled = importlib.import_module(name).scaled
        found.append(str([str(part).replace(name, "") for part in identity(scaled)]))
    assert (found[0] != found[1]) == counts


# --- plain values


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.text().map(Path)
hashable = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
values = st.recursive(
    leaves | st.frozensets(hashable),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def spelled(value) -> str:
    """A text that two values share if they are equal, types and order included."""
    if isinstance(value, frozenset):
        return f"set{sorted(map(spelled, value))}"
    if isinstance(value, dict):
        return f"dict{[(spelled(key), spelled(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[spelled(item) for item in value]}"
    return f"{type(value).__name__}{value!r}"


@given(values)
def test_a_copy_is_equal(value):
    assert fingerprint(value) == fingerprint(deepcopy(value))


@given(values, values)
def test_two_values_are_equal_exactly_where_their_fingerprints_are(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (spelled(one) == spelled(other))


@given(st.lists(st.text("ab:<>0 '\"path"), max_size=3), st.lists(st.text("ab:<>0 '\"path"), max_size=3))
def test_texts_and_paths_cannot_imitate_the_encoding(one, other):
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)
    assert fingerprint(*map(Path, ["x", "y:0><path z"])) != fingerprint(*map(Path, ["x:0><path y", "z"]))
    assert fingerprint(one, other) != fingerprint([*one, *other])


@given(st.lists(hashable, unique=True), st.randoms())
def test_a_set_has_no_order_and_a_mapping_has(items, random):
    shuffled = random.sample(items, len(items))
    assert fingerprint(set(items)) == fingerprint(frozenset(shuffled)) == fingerprint(set(shuffled))
    one, other = (dict.fromkeys(map(repr, order)) for order in (items, shuffled))
    assert (fingerprint(one) == fingerprint(other)) == (list(one) == list(other))


def test_similar_values_differ():
    things = [
        0,
        0.0,
        -0.0,
        False,
        None,
        "",
        "0",
        b"",
        b"0",
        (),
        [],
        {},
        set(),
        [0],
        (0,),
        [[]],
        [None],
        1,
        True,
        1.0,
        "None",
        Path(),
        Path("0"),
    ]
    things += [
        torch.zeros(1),
        torch.zeros(1, 1),
        np.zeros(1),
        np.float32(0),
        np.float64(0),
        torch.float32,
        torch.float16,
        range(2),
        slice(2),
    ]
    things += [
        Colour.RED,
        Colour.BLUE,
        Marks(0),
        Marks.BOLD,
        Marks.BOLD | Marks.WIDE,
        Colour,
        Marks,
        re.compile("a"),
        re.compile("a", re.I),
    ]
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


def crowd(name: str) -> Node:
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


@pytest.mark.parametrize("make", [ring, crowd, nested, Parental])
def test_recursive_objects_terminate_and_count(make):
    assert fingerprint(make("a")) == fingerprint(make("a")) != fingerprint(make("b"))


def test_a_traced_network_is_identified_by_its_code_and_its_weights():
    def traced(layer):
        torch.manual_seed(0)
        return fx.symbolic_trace(nn.Sequential(*[nn.Linear(2, 2) for _ in range(30)], layer))

    assert fingerprint(traced(nn.ReLU())) == fingerprint(traced(nn.ReLU())) != fingerprint(traced(nn.Sigmoid()))
    one, other = traced(nn.ReLU()), traced(nn.ReLU())
    other.get_parameter("3.weight").data += 1
    assert fingerprint(one) != fingerprint(other)


def deep() -> list:
    value: list = []
    for _ in range(5000):
        value = [value]
    return value


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch say that it is going away
        return torch.jit.script(nn.ReLU())


@pytest.mark.parametrize(
    "make",
    [
        lambda: sys.__stderr__, lambda: (i for i in range(3)), deep, lambda: torch.zeros(2, device="meta"), scripted,
        lambda: torch.eye(2).to_sparse(), lambda: memoryview(b"a"),
    ],
)  # fmt: skip
def test_an_opaque_object_is_an_error_of_one_line_also_inside_of_others(make):
    thing = make()
    model = Scale()
    model.__dict__["held"] = thing
    for holder in (thing, [thing], {"a": thing}, model, lambda: thing):
        with pytest.raises(
            UserError, match=r"^features cannot be cached: an object of \w+ cannot be fingerprinted .*; take cache=none$"
        ) as error:
            fingerprint(holder)
        assert len(str(error.value).splitlines()) == 1


# --- prefixes


@given(at=st.integers(0, 4))
def test_a_change_in_a_layer_changes_the_prefixes_from_there_on_and_none_below(at):
    layers = {f"layer{i}": nn.Linear(2, 2) for i in range(5)}
    before = prefixes(layers)
    layers[f"layer{at}"].bias.data += 1
    after = prefixes(layers)
    assert [before[name] == after[name] for name in layers] == [i < at for i in range(5)]


def test_each_cut_has_its_own_prefix_which_is_the_same_for_a_part_of_the_layers():
    backbone = load_backbone("glyph")
    found = prefixes(dict(backbone.items()))
    assert tuple(found) == backbone.cuts and len(set(found.values())) == len(found)
    for cut in backbone.cuts:
        assert prefixes(dict(backbone.upto(cut).items())) == {name: found[name] for name in backbone.upto(cut).cuts}


def test_equal_layers_at_other_positions_have_other_prefixes():
    layer = nn.ReLU()
    assert len(set(prefixes({"a": layer, "b": layer, "c": layer}).values())) == 3


def test_software_names_the_versions():
    assert f"torch {torch.__version__.partition('+')[0]}" in software() and f"pillow {Image.__version__}" in software()


SIZE = 8


def test_a_plain_global_that_a_function_names_counts(monkeypatch):
    def crop(image):
        return image[:SIZE]

    before = fingerprint(crop)
    monkeypatch.setitem(globals(), "SIZE", 16)
    assert fingerprint(crop) != before


def test_of_a_data_set_its_numbers_and_transforms_count_and_not_its_images():
    class Data(torch.utils.data.Dataset):
        def __init__(self, gain, pictures):
            self.gain, self.pictures, self.root = gain, pictures, "somewhere"

        def load(self, place):
            return self.pictures[place] * self.gain

    assert fingerprint(Data(1, [1, 2]).load) == fingerprint(Data(1, [1, 2, 3]).load) != fingerprint(Data(2, [1, 2]).load)
