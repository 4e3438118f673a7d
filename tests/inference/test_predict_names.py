"""Names of files and classes of any kind, pipes among the images, and a reader that ends early."""

import csv
import io
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

from ftlit import load_backbone
from ftlit.cli.main import main
from ftlit.errors import UserError
from ftlit.inference.dense_map import predict_dense
from ftlit.inference.record import record_of
from ftlit.models.heads import LinearHead

CLASSES = [r"$\frac{$", "$5-$10", "=1+1", "ünlü", "写真"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with a random network and unusual class names."""
    folder, backbone = tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None)
    head = LinearHead(backbone.num_features, len(CLASSES))
    record = record_of(backbone, {}, {"_target_": "ftlit.models.heads.LinearHead"}, class_names=CLASSES, multilabel=False, affine=False)
    state = torch.nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state, "ftlit": record}, folder / "checkpoints" / "best.ckpt")
    return folder


def predicted(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ftlit", "predict", *map(os.fsdecode, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


def test_a_name_that_is_not_utf8_a_formula_and_a_pipe_are_rows(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for name in (b"set/caf\xe9.png", b"=1+1.png"):
        Image.new("RGB", (40, 40)).save(io.FileIO(name, "wb"), "PNG")
    os.mkfifo("set/pipe.png")
    code, out = predicted(monkeypatch, capsys, run, "set", "=1+1.png", "--top", "5")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, [row["path"] for row in rows]) == (1, [r"set/caf\xe9.png", "set/pipe.png", "'=1+1.png"])
    assert rows[1]["error"].endswith("is not a regular file, but a folder, a pipe or a device: give the path of an image file")
    assert not any(cell.startswith("=") for row in rows for cell in row.values())
    code, out = predicted(monkeypatch, capsys, run, "set", "--format", "jsonl")
    assert [json.loads(line)["path"] for line in out.splitlines()] == [r"set/caf\xe9.png", "set/pipe.png"]


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_name_is_no_formula_in_a_figure(label, run, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "$x^$.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        predict_dense(str(run), [str(tmp_path / "$x^$.png")], label=label, size=None, out=str(tmp_path), trust=False)
    assert (tmp_path / "$x^$_dense.png").stat().st_size


def test_an_image_that_is_a_pipe_ends_dense_prediction_with_its_name(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a regular file"):
        predict_dense(str(run), [str(tmp_path / "pipe.png")], label=None, size=None, out=str(tmp_path), trust=False)


@pytest.mark.e2e
def test_a_reader_that_ends_early_ends_prediction_quietly(run, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "ftlit.cli.main", "predict", str(run), *[str(tmp_path / "a.png")] * 3, "--batch-size", "1"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
