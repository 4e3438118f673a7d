"""`ftlit predict` of a folder per class: labels, accuracy and errors; nothing is printed where the folders are no classes."""

import csv
import io
import json
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image
from test_predict import CLASSES, command, save_run

from ftlit import load_backbone
from ftlit.data.dataset import Collection, Examples
from ftlit.data.images import read_image
from ftlit.data.input_spec import InputSpec
from ftlit.data.splitting.duplicates import content_hashes
from ftlit.data.splitting.stored_split import write_split
from ftlit.inference.folder_labels import describe_errors, labels_by_folder
from ftlit.inference.network_inputs import NamedInputs
from ftlit.run_folder import write_result

ALWAYS = CLASSES[2]  # the class that the network of these tests gives any image


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = save_run(tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None))
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["head.bias"][2] = 1e4
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    return folder


def save_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (90, 10, 200)).save(root / name)
    return root


def test_the_accuracy_is_that_of_the_folders_and_rows_have_their_names(run, tmp_path, monkeypatch, capsys):
    save_images(tmp_path, f"{ALWAYS}/a.png", f"{ALWAYS}/day 1/b.png", f"{CLASSES[0]}/c.png", f"{CLASSES[5]}/d.png")
    (tmp_path / ALWAYS / "e.png").write_text("no image")
    code, out, err = command(monkeypatch, capsys, "predict", run, tmp_path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and list(rows[0])[-2:] == ["true_label", "error"]
    assert [row["true_label"] for row in rows] == [CLASSES[0], *[ALWAYS] * 3, CLASSES[5]]
    assert err.splitlines()[0] == (
        "ftlit: accuracy 0.5000 (95 % interval 0.150 to 0.850) on 4 images with their folders as labels; "
        f"errors: {CLASSES[0]} 1 of 1, {CLASSES[5]} 1 of 1"
    )
    _, out, err = command(monkeypatch, capsys, "predict", run, tmp_path / ALWAYS / "..", "--format", "jsonl")
    assert [json.loads(line)["true_label"] for line in out.splitlines()] == [row["true_label"] for row in rows] and "accuracy 0.5" in err


@pytest.mark.parametrize("more", [["f.png"], [f"{ALWAYS}.png"], ["train/g.png"], []])
def test_without_folders_of_classes_nothing_is_said(run, tmp_path, monkeypatch, capsys, more):
    """Images beside the folders, a file in place of a folder, and folders that are no classes."""
    save_images(tmp_path, *([f"{ALWAYS}/a.png"] if more and "/" not in more[0] else ["other/a.png"]), *more)
    code, out, err = command(monkeypatch, capsys, "predict", run, tmp_path)
    assert (code, err) == (0, "") and "true_label" not in out
    save_images(tmp_path / "labelled", f"{ALWAYS}/a.png")
    code, out, err = command(monkeypatch, capsys, "predict", run, tmp_path / "labelled", tmp_path / "labelled" / ALWAYS / "a.png")
    assert (code, err) == (0, "") and "true_label" not in out


def test_one_note_names_folders_that_are_no_classes(run, tmp_path, monkeypatch, capsys):
    save_images(tmp_path, f"{ALWAYS}/a.png", "wasps/b.png")
    code, out, err = command(monkeypatch, capsys, "predict", run, tmp_path)
    assert code == 0 and "true_label" not in out and err.count("\n") == 1
    assert err == (
        "ftlit: no accuracy, because these sub-folders are not named like a class of the run: wasps (classes: class 0, class 1, class 2, "
        "class 3, class 4, class 5, class 6); rename the folders, or move them elsewhere\n"
    )
    labels, notes = labels_by_folder(NamedInputs([str(save_images(tmp_path, "flies/b.png"))], InputSpec()), CLASSES)
    assert labels is None and ": flies, wasps (classes: " in notes[0]


def test_errors_come_with_the_worst_class_first_and_many_are_cut_short():
    images = Counter({f"{i}": 10 for i in range(40)})
    text = describe_errors(images, Counter({f"{i}": 1 for i in range(20)} | {"39": 5}), "images")
    assert "errors: 39 5 of 10, 0 1 of 10, " in text and text.endswith("... (21 in all)")
    assert describe_errors(images, Counter(), "images").endswith("on 400 images with their folders as labels; no errors")


def test_a_note_counts_the_images_that_the_run_was_trained_on(run, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    photos = save_images(tmp_path / "photos", f"{ALWAYS}/a.png", f"{ALWAYS}/b.png", f"{ALWAYS}/c.png")
    for number, name in enumerate("abc"):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(photos / ALWAYS / f"{name}.png")
    images = {name: Examples([path := photos / ALWAYS / f"{name}.png"], [(2,)], read_image, [path]) for name in "abc"}
    splits = dict(zip(("train", "val", "test"), images.values(), strict=True))
    write_split(folder, Collection(splits, CLASSES), {split: content_hashes(own) for split, own in splits.items()})
    for fitted, number in (("train", 1), ("train + val", 2)):
        write_result(folder, {"test/fitted_on": fitted})
        err = command(monkeypatch, capsys, "predict", folder, photos)[2].splitlines()
        assert err[1].startswith(f"ftlit: note: {number} of 3 images were among the training images of this run: ")
    (photos / ALWAYS / "a.png").unlink()
    (photos / ALWAYS / "b.png").unlink()
    assert "among the training" not in command(monkeypatch, capsys, "predict", folder, photos)[2]


def test_a_mistyped_run_is_answered_with_the_run_beside_it(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "second")
    (tmp_path / "second" / "config.yaml").write_text("head: {_target_: ftlit.models.heads.LinearHead}")
    code, _, err = command(monkeypatch, capsys, "predict", tmp_path / "secnd", tmp_path)
    assert code == 2 and err == f"ftlit: there is no file or folder {tmp_path / 'secnd'}: did you mean {tmp_path / 'second'}?\n"
