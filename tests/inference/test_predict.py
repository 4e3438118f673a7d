"""Prediction with the network of a small run, in this process: accepted images, one-line errors, and the paths in the output."""

import csv
import io
import json
import sys
from math import inf, nan

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ftlit import UserError, load, load_backbone
from ftlit.cli.main import main
from ftlit.data.input_spec import InputSpec
from ftlit.inference import predict
from ftlit.inference.network import Network
from ftlit.inference.network_inputs import NamedInputs
from ftlit.inference.predict import loader_of
from ftlit.inference.prediction import Prediction, unsure_first
from ftlit.inference.record import record_of
from ftlit.models.heads import LinearHead

CLASSES = [f"class {i}" for i in range(7)]


def save_run(folder, backbone, **fields):
    """Save the folder of a run with a random head."""
    head = LinearHead(backbone.num_features, len(CLASSES))
    record = record_of(backbone, {}, {"_target_": "ftlit.models.heads.LinearHead"}, class_names=CLASSES, multilabel=False, affine=False)
    record["backbone"]["arguments"].update(fields)
    (folder / "checkpoints").mkdir(parents=True)
    state = nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
    torch.save({"state_dict": state, "ftlit": record}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Save two images in a folder, and a csv that lists them and a missing image; change to the parent folder."""
    (tmp_path / "set" / "own").mkdir(parents=True)
    for name, level in (("a", 30), ("b", 200)):
        Image.new("RGB", (40, 40), (level, 90, 10)).save(tmp_path / "set" / "own" / f"{name}.png")
    (tmp_path / "set" / "list.csv").write_text("path,id\nown/b.png,1\n./own/a.png,2\nown/c.png,3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *arguments):
    """Run `ftlit`; return exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["ftlit", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_report_command_mentions_a_sweep_only_in_the_folder_of_a_sweep(tmp_path, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "report", tmp_path)
    assert code == 2 and err.count("\n") == 1 and "is not that of a run or of a sweep: give " in err
    assert command(monkeypatch, capsys, "report", tmp_path / "nope")[2] == f"ftlit: there is no folder {tmp_path / 'nope'}\n"
    (tmp_path / "multirun.yaml").write_text("")
    code, _, err = command(monkeypatch, capsys, "report", tmp_path)
    assert code == 2 and "no job began" in err


def test_another_column_of_a_csv_is_read_by_name(run, images, monkeypatch, capsys):
    (images / "set" / "files.csv").write_text("id,photo\n1,own/a.png\n2,own/b.png\n")
    code, out, _ = command(monkeypatch, capsys, "predict", run, "set/files.csv", "--column", "photo")
    assert code == 0 and [row["path"] for row in csv.DictReader(io.StringIO(out))] == ["own/a.png", "own/b.png"]
    code, out, err = command(monkeypatch, capsys, "predict", run, "set/files.csv")
    assert code == 2 and not out and err.count("\n") == 1
    assert "set/files.csv has no column 'path': " in err and "photo" in err and "--column" in err


def test_rows_have_the_paths_of_the_csv_and_unreadable_images_are_counted(run, images, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "predict", run, "set/list.csv", "set/own/a.png", "--top", "99")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["path"] for row in rows] == ["own/b.png", "./own/a.png", "own/c.png", "set/own/a.png"]
    assert [bool(row["label"]) for row in rows] == [True, True, False, True] and rows[2]["error"] == "no such file or folder"
    assert code == 1 and err == "ftlit: 1 of 4 images have no prediction: their rows of the output give the reason\n"
    assert len(rows[0]) == 2 + 2 * len(CLASSES) and {rows[0][f"label_{i}"] for i in range(2, 8)} | {rows[0]["label"]} == set(CLASSES)
    code, out, _ = command(monkeypatch, capsys, "predict", run, "set/list.csv", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [row["path"] for row in records] == [row["path"] for row in rows[:3]]
    assert records[2]["error"] == "no such file or folder" and "\n" not in records[2]["error"]


def test_one_image_is_predicted_in_one_process_even_with_two_devices(run, images, monkeypatch, capsys):
    alone = command(monkeypatch, capsys, "predict", run, "set/own/a.png")
    assert alone[0] == 0 and command(monkeypatch, capsys, "predict", run, "set/own/a.png", "--devices", "2") == alone


def test_more_devices_than_available_are_a_one_line_error(run, images, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    code, out, err = command(monkeypatch, capsys, "predict", run, "set/own", "--devices", "2")
    assert code == 2 and not out and err == "ftlit: --devices 2: this machine has only 1 GPU, so give --devices 1\n"


def test_a_missing_run_is_an_error_that_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, capsys, "predict", "runs/nope", "x.png")[2] == "ftlit: there is no file or folder runs/nope\n"
    (tmp_path / "begun").mkdir()
    (tmp_path / "x.png").touch()
    assert (
        "the folder begun is not that of a run: give the folder that ftlit train printed at its end"
        in command(monkeypatch, capsys, "predict", "begun", "x.png")[2]
    )
    (tmp_path / "theirs/checkpoints").mkdir(parents=True)
    (tmp_path / "theirs/checkpoints/epoch=1.ckpt").touch()
    assert (
        "theirs has no checkpoints/best.ckpt: it is not the folder of a run"
        in command(monkeypatch, capsys, "predict", "theirs", "x.png")[2]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((3, 8, 8), 200.0), r"has values from 200 to 200: give floats from 0 to 1 or uint8"),
        (torch.full((3, 8, 8), -0.5), r"has values from -0.5 to -0.5: give floats"),
        (torch.full((3, 8, 8), torch.nan), r"has values from nan to nan: give floats"),
        (torch.full((3, 8, 8), 200), r"has the type torch.int64: give floats from 0 to 1, or uint8"),
        (torch.zeros(8, 8), r"has the shape \(8, 8\): give an RGB image of shape \(3, H, W\)"),
        (torch.zeros(3, 0, 8), r"has the shape \(3, 0, 8\): give an image of at least 1 x 1"),
        (5, r"cannot read an input of the type int: give paths, PIL images or RGB tensors \(3, H, W\), one or a list$"),
        ([None], "cannot read an input of the type NoneType in a list: give"),
        ([1, 2], "of the type int in a list: give"),
        (b"a file", r"the type bytes: give .*, give PIL.Image.open\(io.BytesIO\(data\)\)"),
        ([b"a file"], r"of the type bytes in a list: give .*, give PIL.Image.open"),
        (io.BytesIO(b"a file"), r"the type BytesIO: give .*, give PIL.Image.open\(file\)"),
        (
            np.zeros((2, 8, 8, 3), np.uint8),
            r"of the type ndarray in a ndarray: give .*, give PIL.Image.fromarray\(array\)",
        ),
        ({"a.png": 1}, "the type dict: give"),
    ],
)
def test_an_argument_that_is_not_an_image_is_an_error(run, given, message):
    with pytest.raises(UserError, match=message):
        load(run)(given)


def test_float_and_uint8_tensors_of_an_image_have_the_same_prediction(run):
    network, image = load(run), torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    one, other = network([image, image.double() / 255])
    assert one.label == other.label and one.probability == pytest.approx(other.probability, abs=1e-4)


def test_network_and_prediction_have_a_one_line_text(run):
    network = load(run)
    text = str(network)
    assert text.startswith("Network(glyph") and "LinearHead, 7 classes: class 0, class 1" in text and len(text) < 160
    assert str(Prediction({"ants": 0.98765432, "bees": 0.01})) == "Prediction(ants 0.9877, bees 0.0100)"
    assert str(network(torch.zeros(3, 28, 28))).count("class") == 3
    assert "7 labels" in str(Network(network.backbone, network.head, CLASSES, True))


def test_a_checkpoint_that_names_a_hub_model_downloads_it_only_with_trust(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    import huggingface_hub
    from text_inputs import save_model

    from ftlit import load_bert

    requests = []

    def no_download(name, *, local_files_only=False, **more):
        requests.append(local_files_only)
        raise OSError("not in the cache" if local_files_only else "no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_download)
    backbone = load_bert(str(save_model(tmp_path / "model")), max_length=8)
    load(save_run(tmp_path / "own", backbone))
    foreign = save_run(tmp_path / "foreign", backbone, name="some/where", download=True)
    assert requests == []
    with pytest.raises(UserError, match=r"some/where is not in the local Hugging Face cache: add --trust") as caught:
        load(foreign)
    assert requests == [True] and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"the download from Hugging Face failed \(no network\)"):
        load(foreign, trust=True)
    assert requests == [True, True, False]


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_network_whose_outputs_are_not_finite_gives_rows_with_the_reason(bad, tmp_path, images, monkeypatch, capsys):
    """A prediction of NaN would name the first class, and NaN is no JSON."""
    folder = save_run(tmp_path / "diverged", load_backbone("glyph", weights=None))
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["head.bias"].fill_(bad)
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    code, out, err = command(monkeypatch, capsys, "predict", folder, "set/own/a.png", "--format", "jsonl")
    row = json.loads(out, parse_constant=pytest.fail)
    assert code == 1 and "not finite" in row["error"] and "predictions" not in row and "1 of 1 images have no prediction" in err
    with pytest.raises(UserError, match="not finite"):
        load(folder)("set/own/a.png")


def test_a_line_break_in_a_name_stays_in_its_row(run, images, monkeypatch, capsys):
    strange = images / "a\rb.png"
    (images / "set/own/a.png").rename(strange)
    code, out, _ = command(monkeypatch, capsys, "predict", run, strange)
    assert code == 0 and [row["path"] for row in csv.DictReader(io.StringIO(out, newline=""))] == [str(strange)]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "0 bytes that are not an archive of tensors"), (b"junk", "4 bytes that are not an archive of tensors")]
)
def test_a_damaged_checkpoint_is_named_without_the_advice_of_torch_to_run_it(tmp_path, content, reason):
    folder = save_run(tmp_path / "run", load_backbone("glyph", weights=None))
    file = folder / "checkpoints/best.ckpt"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(caught.value) == f"{file} is damaged, or not a checkpoint of ftlit ({reason}): restore the file from a copy, or train again"
    file.rename(file.with_name("last.ckpt"))
    with pytest.raises(UserError, match=r"has no checkpoints/best\.ckpt: give .*last\.ckpt"):
        load(folder)
    file.mkdir()
    with pytest.raises(UserError, match=r"best\.ckpt is not a file: give .*last\.ckpt"):
        load(folder)


def test_workers_without_a_batch_are_not_started(run):
    network = load(run)
    assert loader_of(network, [("a.png", "a.png")] * 3, batch_size=2, workers=50).num_workers == 2


def test_an_image_without_a_finite_pixel_is_no_image(run, tmp_path):
    Image.fromarray(np.full((9, 9), nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(UserError, match=r"nan\.tif cannot be read as an image: .* \(this image has only NaN or infinite pixels\)"):
        load(run)(tmp_path / "nan.tif")


def test_inputs_are_read_in_parts_and_come_in_order(run, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "HELD", 3)
    sizes: list[int] = []
    loader = predict.loader_of
    monkeypatch.setattr(predict, "loader_of", lambda network, part, *rest: sizes.append(len(part)) or loader(network, part, *rest))
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{i}.png\n" for i in range(4)))
    for folder, number in (("a", 3), ("a/b", 1)):
        (tmp_path / folder).mkdir()
        for i in range(number):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{i}.png")
    examples = NamedInputs([str(tmp_path / "list.csv"), str(tmp_path / "a"), "none.png"], InputSpec())
    rows = list(predict.rows_of(load(run), examples, 2, 0))
    assert len(examples) == 9 and sizes == [3, 3, 3]
    assert [name for name, _ in rows] == [
        *(f"{i}.png" for i in range(4)),
        *(str(tmp_path / "a" / name) for name in ("0.png", "1.png", "2.png", "b/0.png")),
        "none.png",
    ]
    assert [isinstance(result, str) for _, result in rows] == [True] * 4 + [False] * 4 + [True]


def test_the_least_certain_rows_come_first_with_their_labels_and_those_without_a_prediction_last():
    rows = [("sure", Prediction({"a": 0.9, "b": 0.2})), ("unread", "no image"), ("unsure", Prediction({"a": 0.7, "b": 0.01}))]
    found, labels = unsure_first(rows, ["x", "y", "z"], multilabel=False)
    assert [name for name, _ in found] == ["unsure", "sure", "unread"] and labels == ["z", "x", "y"]
    several = [("clear", Prediction({"a": 0.1, "b": 0.05})), ("unclear", Prediction({"a": 0.95, "b": 0.5}))]
    assert unsure_first(several, None, multilabel=True) == ([several[1], several[0]], None)
