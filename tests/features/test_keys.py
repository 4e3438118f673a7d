"""The key of stored features changes with every component, but not with comments, docstrings or module paths of ftlit."""

import ast
import json
import os
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import warm
from paths import python_path
from torch import nn

import ftlit
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.features.keys import KeyComponents, feature_keys, view_digest
from ftlit.features.spec import FeatureSpec
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import pool

SOURCE = Path(ftlit.__file__).parent
SPEC = InputSpec(size=8)
COMPONENTS = KeyComponents("layers", "average", "mean", "view", (3,), torch.float32, "float32 on cpu", "torch 2")
OTHERS = {
    "layers": "others", "pooling": "max", "token_pool": "class_token", "view": "other", "shape": (4,), "dtype": torch.float16,
    "computed_in": "float32 on cuda", "software": "torch 3", "pool": pool, "format": 0,
}  # fmt: skip


@pytest.mark.parametrize("component", [field.name for field in fields(KeyComponents)])
def test_every_component_changes_the_key(component):
    assert replace(COMPONENTS, **{component: OTHERS[component]}).digest != COMPONENTS.digest == replace(COMPONENTS).digest


def three_layers() -> Backbone:
    torch.manual_seed(0)
    return Backbone({"low": nn.Conv2d(3, 4, 3), "middle": nn.ReLU(), "top": nn.Conv2d(4, 5, 3)}, SPEC)


def keys(backbone: Backbone, view: str = "view", dtype: torch.dtype = torch.float32, size: int = 8) -> list[str]:
    specs = [FeatureSpec(cut, pooling) for cut in backbone.cuts for pooling in ("average", "max", None)]
    found = feature_keys(backbone, specs, view=view, size=(3, size, size), dtype=dtype)
    return [found[spec].digest for spec in specs]


def test_each_cut_pooling_view_dtype_and_precision_has_a_different_key():
    plain = keys(three_layers())
    half = keys(three_layers(), dtype=torch.float16)
    other = keys(three_layers(), view="other")
    with torch.autocast("cpu", torch.bfloat16):
        autocast = keys(three_layers())
    assert len({*plain, *half, *other, *autocast}) == 4 * 9 and keys(three_layers()) == plain


@pytest.mark.parametrize(("layer", "kept"), [("low", 0), ("top", 6)])
def test_a_changed_weight_changes_the_keys_from_its_layer_on(layer, kept):
    backbone = three_layers()
    before = keys(backbone)
    backbone.get_submodule(layer).bias.data[0] += 1e-6
    after = keys(backbone)
    assert after[:kept] == before[:kept] and not set(after[kept:]) & set(before)


def test_the_digest_of_a_view_depends_on_transform_reader_and_seeds():
    spec, other = InputSpec(size=8), InputSpec(size=8, mean=0.5)
    views = [(eval_transform(spec), image_reader(spec)), (eval_transform(other), image_reader(spec)), (eval_transform(spec), abs)]
    views += [(train_transform(spec), image_reader(spec), pair) for pair in ((0, 1), (0, 2), (1, 1))]
    assert len({view_digest(*view) for view in views}) == len(views)
    assert view_digest(eval_transform(spec), image_reader(spec)) == view_digest(*views[0])


USERS = """
from ftlit.data.images import to_rgb
from ftlit.seeding import derived_seed
from ftlit.zoo.blocks import Renormalise
GAIN = 2.0
def transform(image):
    return to_rgb(image), derived_seed(1), GAIN * 3
class Layer(Renormalise):
    factor = 4
"""
PROGRAM = """
import json, torch, users
from types import SimpleNamespace
from torchvision.models import VisionTransformer
from ftlit.identity.code_identity import _stable_names
from ftlit.data.splitting.splits import SplitRule
from ftlit.data.sources.builtin import digits
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.text_files import read_text
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.features.keys import feature_keys, view_digest
from ftlit.features.spec import FeatureSpec
from ftlit.identity.fingerprint import fingerprint
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.zoo import load_backbone, text_encoders, vision_transformers
from ftlit.zoo.timm_split import timm_partial
from ftlit.zoo.blocks import Renormalise
spec = InputSpec(size=32)
torch.manual_seed(0)
layers = {
    "renormalise": Renormalise(), "patches": vision_transformers.PatchEmbeddings(VisionTransformer(32, 16, 1, 1, 8, 8)),
    "class": vision_transformers.ClassToken(), "user": users.Layer(),
    "embeddings": text_encoders.TokenEmbeddings(SimpleNamespace(embeddings=torch.nn.Embedding(4, 2)), 0),
    "encoder": text_encoders.EncoderLayer(torch.nn.Identity()), "part": timm_partial.PartialForward(torch.nn.ReLU(), "forward"),
    "clone": timm_partial.CloneInput(), "average": timm_partial.AverageLogits([torch.nn.Linear(2, 2)]),
}
data = digits(SplitRule({"val": 0.1, "test": 0.1}))
loaders = [image_reader(spec), data.splits["train"].load, read_text]
views = [view_digest(transform, load) for transform in (eval_transform(spec), train_transform(spec)) for load in loaders]
keys = {}
for name, rewrite in {"glyph": torch.nn.Module.eval, "folded": batchnorm_to_affine}.items():
    backbone = rewrite(load_backbone("glyph"))
    specs = [FeatureSpec(cut, "average") for cut in backbone.cuts]
    found = feature_keys(backbone, specs, view=views[0], size=(3, 32, 32), dtype=torch.float32)
    keys |= {f"{name} {spec.cut}": key.digest for spec, key in found.items()}
keys |= {f"layer {name}": fingerprint(layer) for name, layer in layers.items()}
keys |= {f"versioned {name}": fingerprint(thing) for thing, name in _stable_names.items()}
keys |= {f"view {i}": view for i, view in enumerate(views)} | {"user": view_digest(users.transform, users.transform)}
print(json.dumps(keys))
"""


ALIAS = "import sys, importlib\nsys.modules[__name__] = importlib.import_module({!r})\n"


def edit_and_move(path: Path, module: str) -> None:
    """Change all docstrings and comments of a module, and move it; its old name stays importable."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0].value.value = f"Edited.\n\n{ast.get_docstring(node)}"
    text = f"# a comment\n\n{ast.unparse(tree)}\n"
    if path.name == "__init__.py":
        path.write_text(text)
    else:
        path.with_name(f"moved_{path.name}").write_text(text)
        path.write_text(ALIAS.format(f"{module}.moved_{path.stem}"))


def keys_of(folder: Path, users: str) -> dict[str, str]:
    """Return the keys that PROGRAM prints with the package in this folder."""
    (folder / "users.py").write_text(users)
    (folder / "program.py").write_text(PROGRAM)
    done = warm.run([sys.executable, folder / "program.py"], cwd=folder, env={**os.environ, "PYTHONPATH": python_path(folder)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.e2e
def test_edited_comments_docstrings_and_moved_modules_change_no_key_but_a_users_constant_does(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        shutil.copytree(SOURCE, folder / "ftlit", ignore=shutil.ignore_patterns("conf", "__pycache__"))
    for path in [*(after / "ftlit").rglob("*.py")]:
        edit_and_move(path, ".".join(path.relative_to(after).parent.parts))
    found, edited = keys_of(before, USERS), keys_of(after, USERS.replace("2.0", "2.5"))
    assert {name for name in found if found[name] != edited[name]} == {"user"}
    assert len(found) == len(edited) and len(set(found.values())) > 40
