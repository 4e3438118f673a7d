"""A run's folder alone gives its network back, and nothing in the folder is executed."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ftlit import UserError, load_backbone
from ftlit.dataset import read_image
from ftlit.prediction import load_run
from ftlit.transform import eval_transform

ROOT = Path(__file__).parents[1]


def command(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on pictures of two colours, with all that a record may have to tell, and one of the pictures."""
    folder = tmp_path_factory.mktemp("colours")
    draw = torch.Generator().manual_seed(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = (level + 40 * torch.randn(48, 64, 3, generator=draw)).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / name / f"{name}{i}.png")
    parts = ("backbone.cut=layer3", "batchnorm=affine", "head=mlp", "head.hidden=[8]", "scenario=large_similar", "optimizer.lr=1e-2")
    arguments = ("data=folder", "data.batch_size=8", "data.root=photos", "data.augment=none", "trainer=cpu", "hydra.run.dir=run")
    done = command(folder, ROOT / "train.py", *parts, *arguments)
    assert done.returncode == 0, done.stderr
    return folder


def predict(folder, *arguments):
    return command(folder, "-m", "ftlit.cli", "predict", *arguments)


def test_the_network_of_a_run_says_what_the_run_has_trained(run):
    network = load_run(run / "run")
    held = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    own = {f"{part}.{name}": tensor for part in ("backbone", "head") for name, tensor in getattr(network, part).state_dict().items()}
    assert all(torch.equal(tensor, held[name]) for name, tensor in own.items()) and not network.backbone.training
    image = run / "photos/dark/dark0.png"
    pixels = eval_transform(network.backbone.input_spec)(read_image(image))[None]
    logits = network.head(network.backbone.pool(network.backbone(pixels)))
    assert torch.allclose(network.probabilities(image), logits.softmax(dim=1)[0], atol=1e-6)
    picture, probabilities = network.map_of(image, 32)
    assert picture.shape == (32, 42, 3) and probabilities.shape[0] == 2 and probabilities.shape[1] == 1


def test_the_command_prints_a_line_an_image_in_the_order_given(run):
    images = [f"photos/{name}/{name}3.png" for name in ("light", "dark")]
    rows = list(csv.DictReader(io.StringIO(predict(run, "run", *images).stdout)))
    assert [(row["path"], row["label"]) for row in rows] == [(images[0], "light"), (images[1], "dark")]
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)


def test_a_map_is_drawn_over_an_image(run):
    said = predict(run, "run", "photos/light/light0.png", "--dense", "--label", "dark", "--size", "64", "--out", "maps")
    assert said.returncode == 0 and said.stdout == "maps/light0_dense.png\n", said.stderr
    assert Image.open(run / "maps/light0_dense.png").width > 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", "a.png"), "nothing is no folder of a run"),
        (("run", "photos/dark/dark99.png"), "cannot be read as an image"),
        (("run", "photos/dark/dark1.png", "--dense", "--label", "drak"), "no class 'drak': did you mean 'dark'"),
        (("run", "photos/dark/dark1.png", "--dense", "--size", "8"), "size 8: the network was trained on images of 32 px"),
        (("run", "photos/dark/dark1.png", "photos/dark/dark1.png", "--dense"), "two images would be drawn as dark1_dense.png"),
        (("run", "photos/dark/dark1.png", "--label", "dark"), "--label, --size and --out are of --dense"),
        (("run",), "the following arguments are required: IMAGE"),
    ],
)
def test_mistakes_are_one_line(run, arguments, said):
    result = predict(run, *arguments)
    assert result.returncode == 2 and said in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_what_is_not_ours_is_refused_and_never_called(run, tmp_path):
    record = json.loads((run / "run/model.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    for name in ("class_names.json", "checkpoints/best.ckpt"):
        (tmp_path / name).write_bytes((run / "run" / name).read_bytes())
    for changed in ({"head": {"_target_": "os.system", "command": "touch ran"}}, {"backbone": {"loader": "os.system"}}, {"backbone": None}):
        (tmp_path / "model.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(UserError, match="of ftlit"):
            load_run(tmp_path)
    for changed in ({"head": {}}, {"head": {"_target_": "ftlit.head.LinearHead", "in_features": 5}}, {"affine": False}):
        (tmp_path / "model.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(UserError, match="do not fit each other"):
            load_run(tmp_path)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v2", {"width_mult": 0.35, "cut": "features.5"}),
        ("vit_b_32", {"input_spec": {"size": 96}, "cut": 2}),
        ("googlenet", {"transform_input": True, "input_spec": {"size": 64}}),
    ],
)
def test_a_record_builds_the_same_network(name, options):
    backbone = load_backbone(name, weights=None, **options).eval()
    record = json.loads(json.dumps(backbone.record))
    assert record.pop("loader") == "load_backbone"
    again = load_backbone(weights=None, **record).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, backbone.input_spec.size, backbone.input_spec.size)
    with torch.no_grad():
        assert torch.equal(again(images), backbone(images)) and again.cuts == backbone.cuts
