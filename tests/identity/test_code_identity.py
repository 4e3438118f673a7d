"""Identity of code: ftlit's layers, transforms and readers by name and version, packages by their version, a user's by its code."""

import importlib
import io
import json
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer
from versioned_parts import SPEC, Masked, block_with_constants, relative_block, rotary_block, text_embeddings, versions_of_ftlit

from ftlit.data.dataset import Split
from ftlit.data.images import image_reader, read_image, to_rgb
from ftlit.data.sources.builtin import _array_to_rgb, _load, digits, torchvision_dataset
from ftlit.data.sources.hf_dataset import ReadHfImage
from ftlit.data.sources.text_files import read_text
from ftlit.data.sources.torch_items import ReadItem
from ftlit.data.splitting.gathered import ReadFromSeveral
from ftlit.data.splitting.splits import SplitRule
from ftlit.data.tokens import TextSpec, TokenIds
from ftlit.data.transforms import AUGMENTS, eval_transform, train_transform
from ftlit.features.keys import feature_keys, view_digest
from ftlit.features.spec import FeatureSpec
from ftlit.features.stored_pixels import StoredPixels
from ftlit.identity.code_identity import _stable_names, identity, stable_name, versioned
from ftlit.identity.fingerprint import fingerprint, prefixes
from ftlit.models.backbone import Backbone, Layers
from ftlit.models.batchnorm_fold import AffineNorm, batchnorm_to_affine
from ftlit.models.fully_convolutional import _ChannelNorm
from ftlit.models.lora import Lora, add_lora
from ftlit.zoo import blocks, load_backbone, text_blocks, text_encoders, vision_transformers
from ftlit.zoo.timm_split import grid_constants, timm_partial

FRACTIONS: dict[Split, float] = {"val": 0.1, "test": 0.1}


def test_every_layer_of_ftlit_has_a_version():
    found = set()
    for name in ("data", "models", "zoo"):
        for module in pkgutil.iter_modules(importlib.import_module(f"ftlit.{name}").__path__, f"ftlit.{name}."):
            classes = [value for value in vars(importlib.import_module(module.name)).values() if isinstance(value, type)]
            found |= {cls for cls in classes if issubclass(cls, nn.Module) and cls.__module__ == module.name}
    assert len(found) > 12 and {cls.__name__ for cls in found if stable_name(cls) is None} == set()


class ReferenceRecorder(pickle.Unpickler):
    """Unpickler that records the classes and functions of ftlit in a pickle."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.found: set[Any] = set()

    def find_class(self, module: str, name: str) -> Any:
        thing = super().find_class(module, name)
        if module.startswith("ftlit."):
            self.found.add(thing)
        return thing


def test_every_part_of_ftlit_that_decides_stored_features_has_a_version():
    fake = torchvision_dataset("FakeData", SplitRule(FRACTIONS), root="", download=False, options={"size": 40})
    collections = [digits(SplitRule(FRACTIONS)), fake]
    things: list[Any] = [image_reader(SPEC), read_text, *(one.splits["train"].load for one in collections)]
    things += [train_transform(SPEC, augment) for augment in AUGMENTS] + [eval_transform(SPEC), SPEC]
    for backbone in (load_backbone("glyph"), batchnorm_to_affine(load_backbone("glyph")), load_backbone("mlp", weights=None)):
        things += [layer for _, layer in backbone.items()]
    found = set()
    for thing in things:
        recorder = ReferenceRecorder(pickle.dumps(thing))
        recorder.load()
        found |= recorder.found
    assert found and {thing.__name__ for thing in found if stable_name(thing) is None} == set()


def test_a_version_is_neither_inherited_nor_copied_and_changes_the_fingerprint():
    class Sharper(blocks.Renormalise):
        pass

    @wraps(read_image)
    def wrapped(path):
        return read_image(path).rotate(90)

    @versioned("doubled", 1)
    def doubled(x):
        return x * 2

    assert stable_name(blocks.Renormalise) == "renormalise 1" and stable_name(Sharper) is None is stable_name(wrapped)
    assert fingerprint(wrapped) != fingerprint(read_image) and identity(doubled) == ["ftlit", "doubled 1"]
    before = fingerprint(doubled)
    _stable_names[doubled] = "doubled 2"
    assert fingerprint(doubled) != before
    del _stable_names[doubled]


def of_layer(layer: nn.Module) -> str:
    return prefixes({"layer": layer})["layer"]


def of_view(load: Any, transform: Any = None) -> str:
    return view_digest(transform or eval_transform(SPEC), load)


def of_pooled_features() -> str:
    found = feature_keys(small_backbone(), [FeatureSpec("b", "average")], view="", size=(3, 6, 6), dtype=torch.float32)
    return found[FeatureSpec("b", "average")].digest


def small_backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone({"a": nn.Conv2d(3, 2, 3), "b": nn.ReLU()}, SPEC)


def of_stored_pixels() -> str:
    found = StoredPixels.of(train_transform(SPEC))
    assert found
    return found.key(abs).digest


DEEP = replace(SPEC, grey_range=(0, 4095))
BANDS = replace(SPEC, channels=2, mean=(1, 2), std=1)

# stable name -> keys of stored features that change with its version
KEYS: dict[str, list[Callable[[], str]]] = {
    "affine_norm": [lambda: of_layer(AffineNorm(3))],
    "average_logits": [lambda: of_layer(timm_partial.AverageLogits([nn.ReLU()]))],
    "backbone": [lambda: of_layer(small_backbone())],
    "channel_norm": [lambda: of_layer(_ChannelNorm(nn.LayerNorm(3)))],
    "class_token": [lambda: of_layer(vision_transformers.ClassToken())],
    "clone_input": [lambda: of_layer(timm_partial.CloneInput())],
    "grid_constants": [lambda: of_layer(block_with_constants())],
    "input_spec": [lambda: of_view(read_image, partial(abs, SPEC))],
    "layers": [lambda: of_layer(Layers({"a": nn.ReLU()})), lambda: of_layer(small_backbone())],
    "low_rank": [lambda: of_layer(with_lora())],
    "masked_norm": [lambda: of_layer(text_blocks.MaskedNorm(nn.LayerNorm(3)))],
    "partial_forward": [lambda: of_layer(timm_partial.PartialForward(nn.ReLU(), "forward"))],
    "pass_through": [lambda: of_layer(timm_partial.PassThrough())],
    "patch_embeddings": [lambda: of_layer(vision_transformers.PatchEmbeddings(VisionTransformer(4, 2, 1, 1, 4, 4)))],
    "pool": [of_pooled_features],
    "read_bands": [lambda: of_view(image_reader(BANDS))],
    "read_digit": [lambda: of_view(_array_to_rgb)],
    "read_image": [lambda: of_view(image_reader(SPEC))],
    "read_image_in_range": [lambda: of_view(image_reader(DEEP))],
    "read_text": [lambda: of_view(read_text)],
    "read_from_several": [lambda: of_view(ReadFromSeveral([partial(_load, [])], [0]))],
    "read_hf_image": [lambda: of_view(ReadHfImage([], "image"))],
    "read_item": [lambda: of_view(ReadItem([], "train"))],
    "read_torchvision_image": [lambda: of_view(partial(_load, []))],
    "relative_block": [lambda: of_layer(relative_block())],
    "renormalise": [lambda: of_layer(blocks.Renormalise())],
    "rotary_block": [lambda: of_layer(rotary_block())],
    "square_images": [lambda: of_layer(grid_constants.SquareImages())],
    "text_encoder_layer": [lambda: of_layer(text_encoders.EncoderLayer(Masked()))],
    "text_spec": [lambda: of_view(read_text, partial(abs, TextSpec("folder")))],
    "to_bands": [lambda: of_view(image_reader(BANDS))],
    "to_rgb": [lambda: of_view(image_reader(SPEC)), lambda: of_view(partial(_load, [])), lambda: of_view(lambda x: to_rgb(read_image(x)))],
    "to_rgb_in_range": [lambda: of_view(image_reader(DEEP))],
    "token_embeddings": [lambda: of_layer(text_embeddings())],
    "whole_image": [of_stored_pixels],
    "token_ids": [lambda: of_view(read_text, object.__new__(TokenIds))],
}
AFTER_THE_BACKBONE = {
    "attention_head",
    "conv_head",
    "linear_head",
    "linear_probe_head",
    "mlp_head",
    "pooled_head",
}  # no feature depends on them


def test_every_version_is_part_of_a_key_or_belongs_to_a_head():
    assert {*KEYS, *AFTER_THE_BACKBONE} == {name.split()[0] for name in versions_of_ftlit()}


@pytest.mark.parametrize("name", KEYS)
def test_a_raised_version_changes_the_keys_of_all_features_that_it_decides(name, monkeypatch):
    before = keys_of(name)
    assert keys_of(name) == before
    monkeypatch.setitem(_stable_names, next(thing for thing, stable in _stable_names.items() if stable == f"{name} 1"), f"{name} 2")
    assert all(one != other for one, other in zip(before, keys_of(name), strict=True))


def with_lora() -> nn.Module:
    add_lora(layer := nn.Linear(3, 2), Lora(rank=1))
    return layer


def keys_of(name: str) -> list[str]:
    torch.manual_seed(0)
    return [key() for key in KEYS[name]]


def test_an_installed_package_is_identified_by_its_version_and_code():
    import sklearn
    from sklearn.base import BaseEstimator, clone

    for thing in (BaseEstimator, clone):
        found = identity(thing)
        assert found[0] == f"{thing.__module__}.{thing.__qualname__}" and found[1] == sklearn.__version__
    assert isinstance(clone, FunctionType) and identity(clone)[3]


@pytest.mark.parametrize(
    ("origin", "counts"),
    [(None, False), ({"url": "file:///a", "dir_info": {}}, True), ({"url": "git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}, False)],
)
def test_a_package_is_identified_by_its_version_unless_it_was_installed_from_a_folder(tmp_path, monkeypatch, origin, counts):
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


DISPATCHED = """
from functools import singledispatch, singledispatchmethod, wraps
{kind}
@singledispatch
def size(thing):
    return {fallback}
{registrations}
def transform(x):
    return size(x)
@wraps(size)
def wrapped(x):
    return size(x) + {more}
class Transform:
    def __call__(self, x):
        return self.scaled(x)
    @singledispatchmethod
    def scaled(self, x):
        return {fallback}
    @scaled.register
    def _(self, x: int):
        return x * {number}
"""
ON_INT = "@size.register\ndef _(thing: int):\n    return thing * {number}\n"
ON_KIND = "@size.register\ndef _(thing: Kind):\n    return {kind_number}\n"
USES_OF_DISPATCH = ("size", "transform", "wrapped", "Transform")


def dispatched(registrations: str = ON_INT + ON_KIND, *, call: bool = False, **changed: Any) -> dict[str, str]:
    """Fingerprints of a user's functions that reach a single-dispatch function, and of a class with a single-dispatch method."""
    values = {"fallback": 1, "number": 2, "kind_number": 3, "more": 4, "kind": "class Kind: pass", **changed}
    space: dict[str, Any] = {"__name__": "__nowhere__"}
    exec(DISPATCHED.format(registrations=registrations.format(**values), **values), space)
    if call:
        assert space["transform"](5) == 10 and space["Transform"]()(5) == 10
    return {name: fingerprint(space[name]) for name in USES_OF_DISPATCH}


ALL = set(USES_OF_DISPATCH)
FUNCTIONS = ALL - {"Transform"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, set()),
        ({"call": True}, set()),
        ({"registrations": ON_KIND + ON_INT}, set()),
        ({"fallback": 5}, ALL),
        ({"number": 5}, ALL),
        ({"kind_number": 5}, FUNCTIONS),
        ({"registrations": ON_INT}, FUNCTIONS),
        ({"kind": "class Other: pass\nKind = Other"}, FUNCTIONS),
        ({"more": 5}, {"wrapped"}),
    ],
)
def test_every_registered_implementation_of_a_single_dispatch_function_counts_and_neither_order_nor_calls(arguments, expected):
    before, after = dispatched(), dispatched(**arguments)
    assert {name for name in before if before[name] != after[name]} == expected
