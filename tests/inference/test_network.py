"""A network is loaded from the folder of its run alone, and nothing in the folder is executed (invariant 12)."""

import csv
import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
import warm
from paths import ROOT, python_path
from PIL import Image

from ftlit import UserError, load_backbone
from ftlit.data.images import read_image
from ftlit.data.transforms import eval_transform
from ftlit.inference.load_network import load

pytestmark = pytest.mark.e2e

ARGUMENTS = (
    "backbone.cut=layer3", "batchnorm=affine", "head=mlp", "head.hidden=[8]", "scenario=large_similar", "optimizer.lr=1e-2",
    "data=folder", "data.batch_size=8", "data.root=photos", "data.augment=none", "trainer=cpu", "report=false",
)  # fmt: skip


def command(folder, *arguments):
    return warm.run([sys.executable, *arguments], cwd=folder, env=dict(os.environ), timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on dark and light pictures, with options that a record must hold: cut, affine batchnorm, MLP head."""
    folder = tmp_path_factory.mktemp("colours")
    draw = torch.Generator().manual_seed(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = (level + 40 * torch.randn(48, 64, 3, generator=draw)).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / name / f"{name}{i}.png")
    done = command(folder, ROOT / "train.py", *ARGUMENTS, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder


def predict(folder, *arguments):
    return command(folder, "-m", "ftlit.cli.main", "predict", *arguments)


def test_the_network_of_a_run_has_its_weights_and_predicts_all_forms_of_images(run):
    network = load(run / "run")
    held = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    loaded = {f"{part}.{name}": tensor for part in ("backbone", "head") for name, tensor in getattr(network, part).state_dict().items()}
    assert all(torch.equal(tensor, held[name]) for name, tensor in loaded.items()) and not network.backbone.training
    image = run / "photos/dark/dark0.png"
    pixels = eval_transform(network.backbone.input_spec)(read_image(image))[None]
    logits = network.head(network.backbone.pool(network.backbone(pixels)))
    assert torch.allclose(network.probabilities(pixels), logits.softmax(dim=1), atol=1e-6)
    prediction = network(image)
    assert prediction.probability == pytest.approx(float(logits.softmax(dim=1).max().detach()), abs=1e-6) and prediction.label == "dark"
    colours = [image, str(image), Image.open(image), torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)]
    for other in network([*colours, colours[3].float() / 255]):
        assert other.top(2)[0][0] == "dark" and other.probability == pytest.approx(prediction.probability, abs=1e-4)
    stacked = torch.stack([colours[3], colours[3].flip(2)])
    assert [other.probabilities for other in network(stacked)] == [other.probabilities for other in network(list(stacked))]
    assert network([]) == []
    with pytest.raises(UserError, match=r"\(3, H, W\)"):
        network(torch.zeros(1, 5, 5))
    picture, probabilities = network.map_of(image, 32)
    assert picture.shape == (32, 42, 3) and probabilities.shape[0] == 2 and probabilities.shape[1] == 1


def test_the_command_prints_one_line_per_image_in_the_given_order(run):
    images = [f"photos/{name}/{name}3.png" for name in ("light", "dark")]
    rows = list(csv.DictReader(io.StringIO(predict(run, "run", *images).stdout)))
    assert [(row["path"], row["label"]) for row in rows] == [(images[0], "light"), (images[1], "dark")]
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)


def test_folders_and_csv_files_are_expanded_and_unreadable_images_have_an_error_row(run):
    (run / "some.csv").write_text("path,more\nphotos/light/light2.png,x\nphotos/nothing.png,y\n")
    result = predict(run, "run", "photos/dark", "some.csv", "--top", "2", "--format", "jsonl", "--batch-size", "7")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert (
        result.returncode == 1
        and result.stderr == "ftlit: 1 of 22 images have no prediction: their rows of the output give the reason\n"
        and len(rows) == 22
    )
    assert [row["path"] for row in rows[:20]] == [str(path.relative_to(run)) for path in sorted((run / "photos/dark").iterdir())]
    assert [two["label"] for two in rows[20]["predictions"]] == ["light", "dark"] and rows[21]["error"] == "no such file or folder"
    table = list(csv.DictReader(io.StringIO(predict(run, "run", "some.csv", "--top", "3").stdout)))
    assert list(table[0]) == ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert table[0]["label"] == "light" and table[0]["label_2"] == "dark" and table[1]["label"] == "" and table[1]["error"]


def test_two_processes_predict_the_same_as_one(run):
    one, two = (predict(run, "run", "photos", "--batch-size", "3", "--devices", str(devices)) for devices in (1, 2))
    assert one.returncode == two.returncode == 0, two.stderr
    assert [row.split(",")[:2] for row in one.stdout.splitlines()] == [row.split(",")[:2] for row in two.stdout.splitlines()]
    assert len(one.stdout.splitlines()) == 41


def test_a_trained_network_has_prediction_sets_from_its_scores_on_val(run):
    done = predict(run, "run", "photos/dark", "--coverage", "0.5")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0 and len(rows) == 20 and {row["set"] for row in rows} <= {"", "dark", "light", "dark | light"}
    last = predict(run, "run/checkpoints/last.ckpt", "photos/dark", "--coverage", "0.5")
    assert last.returncode == 2 and last.stderr.count("\n") == 1 and "give the folder of a run, or its best.ckpt" in last.stderr


def test_dense_prediction_writes_a_map_over_the_image(run):
    result = predict(run, "run", "photos/light/light0.png", "--dense", "--label", "dark", "--size", "64", "--out", "maps")
    assert result.returncode == 0 and result.stdout == "maps/light0_dense.png\n", result.stderr
    assert Image.open(run / "maps/light0_dense.png").width > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "a.png"), "there is no file or folder nothing"),
        (("run", "photos/dark/dark1.png", "--format", "jsn"), "no format 'jsn': did you mean 'jsonl'"),
        (("run", "photos/dark/dark1.png", "--top", "0"), "--top 0: give a whole number, 1 or more"),
        (("run", "nothing.csv"), "nothing.csv"),
        (("run", "photos/dark/dark1.png", "--dense", "--label", "drak"), "no class 'drak': did you mean 'dark'"),
        (("run", "photos/dark/dark1.png", "--dense", "--size", "8"), "size 8: give a number of pixels from 32, the size of"),
        (("run", "photos/dark/dark1.png", "--dense", "--size", "100000"), "size 100000: give a number of pixels from 32, the size of"),
        (("run", "photos/dark/dark1.png", "photos/dark/dark1.png", "--dense"), "two images would be written to dark1_dense.png"),
        (("run", "photos/dark/dark1.png", "--label", "dark"), "--label, --size and --out need --dense"),
        (("run",), "ftlit predict needs PATH; example: ftlit predict"),
    ],
)
def test_wrong_arguments_of_predict_are_one_line_errors(run, arguments, message):
    result = predict(run, *arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def changed(run, file, **fields):
    """Save the checkpoint of the run with other fields in its record."""
    checkpoint = torch.load(run / "run/checkpoints/best.ckpt", weights_only=True)
    checkpoint["ftlit"].update(fields)
    torch.save(checkpoint, file)
    return file


def test_a_record_with_an_unknown_callable_is_an_error_and_the_callable_is_not_called(run, tmp_path):
    file = tmp_path / "changed.ckpt"
    for fields in (
        {"head": {"import": "os.system", "arguments": {"command": f"touch {tmp_path}/ran"}}},
        {"backbone": {"name": "os.system", "arguments": {}}},
        {"backbone": {"import": "os.system", "arguments": {"command": f"touch {tmp_path}/ran"}}},
    ):
        with pytest.raises(UserError, match=r"os.system, which is not part of ftlit|no backbone source 'os.system'"):
            load(changed(run, file, **fields))
        (tmp_path / "a.png").touch()
        result = predict(tmp_path, str(file), "a.png")
        assert result.returncode == 2 and "os.system" in result.stderr and result.stderr.count("\n") == 1
    for fields in ({"head": {}}, {"head": {"name": "linear", "arguments": {"in_features": 5}}}, {"affine": False}):
        with pytest.raises(UserError, match=r"do not match|the head has no name or no arguments"):
            load(changed(run, file, **fields))
    assert not (tmp_path / "ran").exists()


class Malicious:
    """An object that runs a command when plain pickle loads it."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_checkpoint_of_another_module_names_the_way_to_load_it(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "mine.ckpt")
    with pytest.raises(
        UserError, match=r"mine\.ckpt was not written by ftlit train: load it with load_from_checkpoint of its own LightningModule$"
    ):
        load(tmp_path / "mine.ckpt")


def test_a_malicious_pickle_is_not_executed_by_prediction_resuming_or_loading_weights(run, tmp_path):
    ran, folder = tmp_path / "ran", tmp_path / "run"
    shutil.copytree(run / "run", folder)
    for name in ("best", "last"):
        checkpoint = torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
        torch.save({**checkpoint, "payload": Malicious(ran)}, folder / f"checkpoints/{name}.ckpt")
    with pytest.raises(UserError, match="the file holds more than tensors and plain values"):
        load(folder)
    resumed = command(run, ROOT / "train.py", *ARGUMENTS, f"hydra.run.dir={folder}", "resume=true")
    assert resumed.returncode == 2 and "last.ckpt" in resumed.stderr and resumed.stderr.count("\n") == 1, resumed.stderr
    with pytest.raises(UserError):
        load_backbone("glyph", weights=folder / "checkpoints/best.ckpt")
    assert not ran.exists()
    torch.load(folder / "checkpoints/best.ckpt", weights_only=False)
    assert ran.exists()  # negative control: without weights_only it is executed


def test_a_custom_head_needs_trust(run, tmp_path, monkeypatch):
    (tmp_path / "users_head.py").write_text(
        "import torch\nclass Head(torch.nn.Linear):\n    def __init__(self, in_features, num_classes):\n"
        "        super().__init__(in_features, num_classes)\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path)}
    arguments = [*ARGUMENTS[6:], "head._target_=users_head.Head", "scenario=large_similar", "trainer.max_epochs=3", "hydra.run.dir=custom"]
    train = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = warm.run(train, cwd=run, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    with pytest.raises(
        UserError, match=r"the head of this run is users_head.Head, which is not part of ftlit: if you trust this code, add --trust"
    ):
        load(run / "custom")
    with pytest.raises(UserError, match="which cannot be imported: "):
        load(run / "custom", trust=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load(run / "custom", trust=True).head).__name__ == "Head"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet_v2", {"width_mult": 0.35, "cut": "features.5"}),
        ("vit_b_32", {"input_spec": {"size": 96}, "cut": 2}),
        ("googlenet", {"transform_input": True, "input_spec": {"size": 64}}),
    ],
)
def test_the_record_of_a_backbone_builds_the_same_network(name, options):
    backbone = load_backbone(name, weights=None, **options).eval()
    record = json.loads(json.dumps(backbone.record))
    assert record.pop("loader") == "torchvision" and record["weights"] is None
    again = load_backbone(**record).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, backbone.input_spec.size, backbone.input_spec.size)
    with torch.no_grad():
        assert torch.equal(again(images), backbone(images)) and again.cuts == backbone.cuts
