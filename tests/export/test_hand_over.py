"""Beside an exported file: a program that predicts as the run does, without ftlit, labels, a sample with its answer, a model card."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import CLASSES, run_of
from safetensors.torch import load_file

from ftlit import UserError, export_run, load, load_backbone, load_timm
from ftlit.cli import main
from ftlit.demo.about import with_about
from ftlit.export.export_formats import EXPORT_FORMATS
from ftlit.export.hand_over import PROBABILITY_TOLERANCE
from ftlit.export.model_card import pretrained_weights
from ftlit.formats import write_json
from ftlit.report.contents import Predictions
from ftlit.report.run_files import write_predictions
from ftlit.report.run_files import write_run as write_report
from ftlit.run_folder import write_result

pytestmark = [pytest.mark.zoo, pytest.mark.e2e]

COMPANIONS = {"predict.py", "labels.txt", "sample.json", "sample.png", "README.md"}
WITHOUT_FTLIT = "import runpy, sys; sys.modules['ftlit'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def run_script(folder, *images):
    """The rows that `predict.py` prints in a process that cannot import ftlit."""
    command = [sys.executable, "-W", "error", "-c", WITHOUT_FTLIT, str(folder / "predict.py"), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [(path, label, float(probability)) for path, label, probability in (line.split("\t") for line in done.stdout.splitlines())]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of several sizes, formats and modes: large and small JPEG files, one that is turned, transparency, a palette, grey."""
    folder, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)

    def picture(height, width):
        coarse = torch.rand(1, 3, 6, 5, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
        return Image.fromarray((255 * fine).to(torch.uint8).permute(1, 2, 0).numpy())

    picture(480, 640).save(folder / "large.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(90, 60).save(folder / "turned.jpg", exif=turned)
    transparent = picture(50, 70)
    transparent.putalpha(picture(50, 70).convert("L"))
    transparent.save(folder / "transparent.png")
    picture(31, 75).quantize(16).save(folder / "palette.png")
    picture(20, 20).convert("L").save(folder / "grey.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    """A run of glyph's network, with the predictions on these images as test images, and with results."""
    folder = run_of(tmp_path_factory.mktemp("run") / "mine", "glyph", {"input_spec": {"resize": 40}})
    (folder / "report").mkdir()
    some = [(0,)] * len(images)
    write_predictions(folder, Predictions([*map(str, images)], some, some, np.ones(len(images))), CLASSES)
    write_json(folder / "data.json", {"run": "", "splits": {"train": {"images": 90}, "val": {"images": 20}, "test": {"images": 30}}})
    write_json(folder / "report" / "run.json", {"plan": [["backbone", "glyph: a, b; weights: shipped glyph.safetensors"]]})
    write_result(folder, {"test/accuracy": 0.9, "test/accuracy_low": 0.744, "test/accuracy_high": 0.965, "test/ece": 0.0312})
    return folder


@pytest.mark.parametrize(
    ("to", "preprocessing", "half"),
    [
        pytest.param("torch", False, False, marks=pytest.mark.slow),
        ("torch", True, True),
        ("onnx", False, True),
        pytest.param("onnx", True, False, marks=pytest.mark.slow),
    ],
)
def test_the_program_predicts_as_the_run_does_in_a_process_without_ftlit(run, images, tmp_path, to, preprocessing, half):
    path, usage = export_run(run, to, tmp_path / f"net{EXPORT_FORMATS[to].suffixes[0]}", preprocessing=preprocessing, half=half)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, *COMPANIONS}
    assert (tmp_path / "labels.txt").read_text().splitlines() == CLASSES
    sample = json.loads((tmp_path / "sample.json").read_text())
    (_, label, probability), *rows = run_script(tmp_path, tmp_path / "sample.png", *images)
    assert label == sample["label"] and abs(probability - sample["probability"]) < PROBABILITY_TOLERANCE == sample["tolerance"]
    for (_, label, probability), prediction in zip(rows, load(run)(images), strict=True):
        assert label == prediction.label and abs(probability - prediction.probability) < PROBABILITY_TOLERANCE
    assert len((tmp_path / "predict.py").read_text().split("\n")) <= 35
    assert str(tmp_path / "predict.py") in usage and ("uint8 RGB (N, 3, H, W)" in usage) == preprocessing


def test_the_program_takes_folders_and_goes_on_after_a_file_that_it_cannot_read(run, images, tmp_path):
    export_run(run, "torch", tmp_path / "net.pt2")
    photos = tmp_path / "photos" / "inner"
    photos.mkdir(parents=True)
    for image in images:
        (photos / image.name).write_bytes(image.read_bytes())
    (photos / "notes.txt").write_text("no image")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[1].read_bytes()[:100])

    def program(*words):
        done = subprocess.run([sys.executable, str(tmp_path / "predict.py"), *map(str, words)], capture_output=True, text=True)
        return done.returncode, [line.split("\t")[0] for line in done.stdout.splitlines()], done.stderr

    names = [str(photos / image.name) for image in images]
    assert program(photos.parent) == (0, names, "")
    status, rows, error = program(broken, tmp_path / "gone.png", photos.parent)
    assert status == 1 and rows == names
    assert [line.split(" cannot be read: ")[0] for line in error.splitlines()] == [str(broken), str(tmp_path / "gone.png")]
    for words in ((), (tmp_path / "empty",)):
        (tmp_path / "empty").mkdir(exist_ok=True)
        status, rows, error = program(*words)
        assert status and not rows and error.startswith("usage: python predict.py IMAGE_OR_FOLDER ...") and len(error.splitlines()) == 1
    read, unread = os.pipe()
    os.close(read)  # nobody reads the output any more, as after `| head`
    done = subprocess.run([sys.executable, str(tmp_path / "predict.py"), names[0]], stdout=unread, stderr=subprocess.PIPE, text=True)
    os.close(unread)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_the_card_has_data_accuracy_calibration_input_and_licence(run, tmp_path):
    export_run(run, "torch", tmp_path / "net.pt2", preprocessing=True)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for row in (
        "| task | image classification, one of 3 classes: ants, bees, wasps |",
        "| data | train 90; val 20; test 30 images |",
        "| accuracy | test 0.9000 (95 % interval 0.744 to 0.965) on 30 images |",
        "| calibration | expected calibration error 0.031 ",
        "shorter side resized to 40 (bilinear), centre crop of 32",
        "name the same class for 5 of 5 test images of the run",
        "| licence of the weights | apache-2.0 (shipped glyph.safetensors) |",
    ):
        assert row in card, row
    alone = run / "checkpoints" / "last.ckpt"
    alone.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes())
    export_run(alone, "torch", tmp_path / "net.pt2")  # another checkpoint than that of the results
    assert "| accuracy | not measured |" in (tmp_path / "README.md").read_text()


def test_the_card_of_a_final_run_has_the_accuracy_of_the_earlier_network_only_and_a_refit_is_marked(images, tmp_path):
    run = run_of(tmp_path / "run", "glyph", {})
    measured = {"test/accuracy": 0.9, "test/accuracy_low": 0.744, "test/accuracy_high": 0.965, "val/accuracy": 0.95}
    write_result(run, {**measured, "test/fitted_on": "train + val"})
    export_run(run, "torch", tmp_path / "net.pt2")
    assert "; val (before the refit on train + val) 0.9500 |" in (tmp_path / "README.md").read_text()
    (run / "init_from").mkdir()
    write_result(run / "init_from", measured)
    write_result(run, {"fitted_on": "train + val + test", "images": 140, "init_from/run": "/home/me/runs/monday"})
    none, number = {"hashes": [], "labels": [], "names": []}, len(images)
    train = {"hashes": list(map(str, range(number))), "labels": [[0]] * number, "names": list(map(str, images))}
    split = {"class_names": CLASSES, "grouped": False, "splits": {"train": train, "val": none, "test": none}}
    write_json(run / "split.json", split)
    _, usage = export_run(run, "torch", tmp_path / "net.pt2", preprocessing=True)
    assert usage.splitlines()[-1].startswith("accuracy: not measured: this network was trained on all images (final=true)")
    card = (tmp_path / "README.md").read_text()
    assert "| agreement | the file and ftlit predict name the same class for 5 of 5 training images of the run, which has no test " in card
    for gone in ("final=true), and its training images are not there as files", "whose files are there"):
        split["splits"]["test" if "whose" in gone else "train"] = {**none, "hashes": ["h"], "labels": [[0]], "names": ["gone.png"]}
        write_json(run / "split.json", split)
        export_run(run, "torch", tmp_path / "net.pt2", preprocessing=True)
        assert f"{gone}, so the file was not compared" in (tmp_path / "README.md").read_text()
    assert "so there never were test images; of the earlier network, monday: test 0.9000 (95 % interval 0.744 to 0.965) |" in card
    page = with_about('<p id="about"></p>', run, load(run), None)
    assert "of the earlier network, monday: test" in page and "/home/me" not in card + page


def test_the_licence_is_that_of_the_pretrained_weights_before_the_runs_of_init_from(tmp_path):
    run = run_of(tmp_path / "run", "glyph", {})
    write_report(run, {"plan": [["backbone", "glyph: stem; 9 parameters; weights: file best.ckpt of runs/monday"]]})
    assert pretrained_weights(run) == "not known"  # of a release that did not copy the report
    write_report(run / "init_from", {"plan": [["backbone", "x; weights: file /home/me/weights/mine.pth; reinitialized: stem"]]})
    assert pretrained_weights(run) == "file mine.pth"
    write_report(run, {"plan": [["backbone", "x; weights: file best.ckpt of b"]], "weights": "shipped glyph.safetensors"})
    export_run(run, "torch", tmp_path / "net.pt2")
    assert "| licence of the weights | apache-2.0 (shipped glyph.safetensors) |" in (tmp_path / "README.md").read_text()


def test_files_of_a_user_or_of_another_exported_file_are_not_replaced_and_those_of_the_same_file_are(run, tmp_path):
    export_run(run, "torch", tmp_path / "net.pt2")
    export_run(run, "torch", tmp_path / "net.pt2", half=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"README.md exists and belongs to net.pt2: give another folder, such as {tmp_path}/pt2/other.pt2$"):
        export_run(run, "torch", tmp_path / "other.pt2")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / "net.pt2").unlink()
    export_run(run, "torch", tmp_path / "other.pt2")  # the file to which they belonged is gone
    assert "other.pt2" in (tmp_path / "predict.py").read_text()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("my project")
    with pytest.raises(
        UserError, match=f"README.md exists and was not written by an export: give another folder, such as {mine}/pt2/net.pt2"
    ):
        export_run(run, "torch", mine / "net.pt2")
    assert [file.name for file in mine.iterdir()] == ["README.md"]


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["ftlit", "export", *map(str, words)])
    try:
        main.main()
        return 0, capsys.readouterr()
    except SystemExit as end:
        return end.code, capsys.readouterr()


def test_the_command_ends_with_status_1_where_file_and_ftlit_predict_differ_too_often(run, tmp_path, monkeypatch, capsys):
    words = (run, "--to", "torch", "--with-preprocessing", "--out", tmp_path / "net.pt2")
    code, printed = command(monkeypatch, capsys, *words)
    assert code == 0 and printed.err == "ftlit: the file and ftlit predict name the same class for 5 of 5 test images of the run\n"

    monkeypatch.setitem(EXPORT_FORMATS, "torch", replace(EXPORT_FORMATS["torch"], least_agreement=1.01))
    code, printed = command(monkeypatch, capsys, *words)
    assert code == 1 and "ftlit: the same class is needed for at least 101%: use predict.py of an export without" in printed.err


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_a_file_of_weights_cannot_prepare_images(run, tmp_path, monkeypatch, capsys, to):
    code, printed = command(monkeypatch, capsys, run, "--to", to, "--with-preprocessing")
    assert code == 2 and "writes weights only, which cannot prepare images: leave --with-preprocessing out" in printed.err


@pytest.mark.parametrize(
    ("name", "load_it", "options"),
    [
        ("efficientnet_lite0", load_backbone, {"input_spec": {"size": 64}}),
        ("test_vit", load_timm, {"input_spec": {"size": 96}}),
    ],
)
def test_timm_loads_the_exported_weights_and_gives_the_same_logits(tmp_path, name, load_it, options):
    run = run_of(tmp_path / "run", name, options, load=load_it)
    network = load(run)
    path, usage = export_run(run, "timm", tmp_path / "out" / "net.safetensors")
    prepared = network.as_input(tmp_path / "out" / "sample.png")[None]
    space = {"images": prepared.numpy()}
    exec(f"import torch, timm, safetensors.torch; {usage.splitlines()[0]}", space)
    assert torch.allclose(torch.from_numpy(space["logits"]), network.logits(prepared), atol=1e-4)
    assert load_file(path).keys() == space["model"].state_dict().keys()
    ((_, label, _),) = run_script(tmp_path / "out", tmp_path / "out" / "sample.png")
    assert label == network(tmp_path / "out" / "sample.png").label


def test_half_stores_weights_in_float16_and_the_file_is_about_half_as_large(run, tmp_path):
    whole, half = (export_run(run, "onnx", tmp_path / str(half) / "net.onnx", half=half)[0].stat().st_size for half in (False, True))
    assert half < 0.7 * whole
    network = run_of(tmp_path / "run", "mobilenet_v3_small", {"input_spec": {"size": 64}})
    state = load_file(export_run(network, "torchvision", tmp_path / "net.safetensors", half=True)[0])
    assert state["features.0.0.weight"].dtype == torch.float16 and state["features.0.1.running_var"].dtype == torch.float32
