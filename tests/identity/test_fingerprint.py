"""Fingerprints are equal if weights, parameters and code are equal, in any process, and differ if one of them differs."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from ftlit.data.images import image_reader, read_image
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform
from ftlit.errors import named_options
from ftlit.identity.fingerprint import fingerprint, of_array, of_bytes, of_tensor, software
from ftlit.zoo import load_backbone

THINGS = """
import torch
from functools import partial
from threading import Event
from ftlit.data.images import image_reader
from ftlit.identity.fingerprint import fingerprint
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.zoo import load_backbone
torch.manual_seed(0)
names = {"a", "b", "c", "layer1", "layer2"}
things = [names, frozenset(names), {"b": 1, "a": {2.5, None}}, partial(sorted, key=len), InputSpec(), eval_transform(InputSpec())]
things += [train_transform(InputSpec(), "trivial_augment"), image_reader(InputSpec()), load_backbone("glyph"), torch.nn.LSTM(2, 3)]
"""


@pytest.mark.e2e
def test_a_process_with_another_hash_seed_computes_the_same_fingerprints():
    here: dict = {}
    exec(THINGS, here)
    program = THINGS + "print(*(fingerprint(thing) for thing in things))"
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [fingerprint(thing) for thing in here["things"]]


def test_features_of_the_command_line_and_of_python_have_one_key(monkeypatch):
    monkeypatch.setattr("ftlit.errors._options_named", Event())
    backbone = load_backbone("glyph")
    with named_options():
        inside = fingerprint(backbone)
    assert fingerprint(backbone) == inside


def test_every_fingerprint_has_32_hexadecimal_digits():
    for found in (fingerprint(), fingerprint(torch.nn.Linear(2, 3)), of_bytes(b""), of_array(np.zeros(0)), of_tensor(torch.zeros(0))):
        assert re.fullmatch("[0-9a-f]{32}", found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64])
def test_a_tensor_is_identified_by_values_shape_and_dtype_in_any_memory_layout(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5)
    x = x > 0 if dtype == torch.bool else x.mul(3).to(dtype)
    assert of_tensor(x) == of_tensor(x.to(memory_format=torch.channels_last)) == of_tensor(x.repeat(1, 1, 1, 2)[..., :5])
    assert of_tensor(x[:, 1:2]) == of_tensor(x[:, 1:2].clone())
    assert of_tensor(x[0, 0, :1, 0]) == of_tensor(x[0, 0, 0, 0].reshape(1).clone())
    different = [x, x.reshape(3, 2, 4, 5), x.transpose(0, 1), x.flatten(), x.to(torch.complex128)]
    assert len({of_tensor(t) for t in different}) == len(different)


def test_a_lazily_conjugated_or_negated_tensor_is_identified_by_its_values():
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert of_tensor(x.conj()) == of_tensor(torch.tensor([1 - 2j, 3 + 1j]))
    assert of_tensor(x.conj().imag) == of_tensor(torch.tensor([-2.0, 1.0]))


def test_an_array_is_identified_by_values_shape_and_dtype_in_any_memory_layout():
    a = np.arange(12, dtype=np.int32).reshape(3, 4)
    assert of_array(a) == of_array(np.asfortranarray(a)) == of_array(np.repeat(a, 2, axis=1)[:, ::2])
    assert len({of_array(b) for b in (a, a.T, a.reshape(4, 3), a.astype(np.int64), a.view(np.uint32), a.ravel())}) == 6


SPECS = [
    {"size": 32}, {"resize": 256}, {"mean": (0.5, 0.456, 0.406)}, {"std": (0.229, 0.224, 0.5)}, {"interpolation": "bicubic"},
]  # fmt: skip


@pytest.mark.parametrize("of", [lambda s: s, eval_transform, train_transform])
def test_every_field_of_an_input_spec_changes_the_fingerprint_of_spec_and_transforms(of):
    kept = [fingerprint(of(InputSpec())), *(fingerprint(of(replace(InputSpec(), **spec))) for spec in SPECS)]
    assert len(set(kept)) == len(kept) - (of is train_transform)  # it does not resize
    assert fingerprint(of(InputSpec())) == kept[0]


def test_every_augmentation_and_scale_differs_and_augment_none_equals_the_evaluation_view():
    found = {augment: fingerprint(train_transform(InputSpec(), augment)) for augment in AUGMENTS}
    assert len(set(found.values())) == len(AUGMENTS) and found["none"] == fingerprint(eval_transform(InputSpec()))
    assert fingerprint(train_transform(InputSpec(), min_scale=0.5)) != found["photo"]


def test_readers_of_images_have_different_fingerprints():
    readers = [read_image, image_reader(InputSpec()), image_reader(InputSpec(size=32)), partial(read_image, at_least=None)]
    assert len({fingerprint(reader) for reader in readers}) == 4
    assert fingerprint(image_reader(InputSpec())) == fingerprint(image_reader(InputSpec()))


def test_software_gives_the_versions():
    assert f"torch {torch.__version__.partition('+')[0]}" in software() and f"pillow {Image.__version__}" in software()
