"""`ftlit embed`: the features of inputs in one file, in order, equal to those of the modules; and its one-line errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import command, save_run
from text_inputs import save_model

from ftlit import extract_features, load, load_backbone
from ftlit.inference import embed, predict
from ftlit.inference.embed import network_of
from ftlit.models.pooling import POOLINGS
from ftlit.zoo.text_encoders import load_bert

SQUEEZENET = ("squeezenet1_1", "backbone.weights=null", "backbone.input_spec.size=64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Save five images, a file that is none, and a csv that lists some; change to the parent folder."""
    (tmp_path / "set").mkdir()
    draw = np.random.default_rng(0)
    for name in "cabed":
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(tmp_path / "set" / f"{name}.png")
    (tmp_path / "none.png").write_text("no image")
    (tmp_path / "list.csv").write_text("path,id\nset/e.png,1\nnone.png,2\nset/a.png,3\nset/e.png,4\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def features_of(backbone, names, pooling="average"):
    """Features of files, by the modules themselves."""
    view = backbone.input_spec.views()[1]
    images = torch.stack([view(Image.open(name).convert("RGB")) for name in names])
    with torch.no_grad():
        return backbone.pool(backbone.eval()(images), pooling).numpy()


def test_features_of_a_run_are_those_of_its_modules_in_the_order_given(run, folder, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, "embed", run, "list.csv", "set", "set/b.png", "--out", "x.npz", "--batch-size", 2)
    found = np.load("x.npz")
    expected = ["set/e.png", "set/a.png", "set/e.png", *(f"set/{name}.png" for name in "abcde"), "set/b.png"]
    assert found["names"].tolist() == expected and found["features"].dtype == np.float32
    assert np.allclose(found["features"], features_of(load(run).backbone, expected), atol=1e-5)
    assert code == 1 and out == "9 images, 128 features each at layer4: x.npz\n"
    assert err.splitlines()[-1] == "ftlit: 1 of 10 images have no features, and no row in x.npz"
    assert err.splitlines()[0].startswith("ftlit: none.png: ") and err.count("\n") == 2


def test_features_equal_those_of_extract_features(run, folder, monkeypatch, capsys, tmp_path):
    command(monkeypatch, capsys, "embed", run, "set", "--out", "x.npz", "--cut", "layer3")
    network, names = load(run), sorted(Path("set").iterdir())
    images = torch.stack([network.as_input(name) for name in names])
    stored = extract_features(network.backbone, [images], "layer3", cache=tmp_path / "store")["layer3"].read(range(5))
    assert np.allclose(np.load("x.npz")["features"], stored.numpy(), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_backbone_has_its_options_cuts_and_poolings(folder, monkeypatch, capsys, pooling):
    names = ["set/a.png", "set/d.png"]
    options = ("--cut", "fire3", "--pooling", pooling)
    assert command(monkeypatch, capsys, "embed", *SQUEEZENET, *names, *options, "--out", "x.npz")[0] == 0
    torch.manual_seed(0)
    backbone = load_backbone("squeezenet1_1", weights=None, cut="fire3", input_spec={"size": 64})
    assert np.allclose(np.load("x.npz")["features"], features_of(backbone, names, pooling), atol=1e-5)


def test_the_same_command_writes_the_same_bytes_and_leaves_no_other_file(folder, monkeypatch, capsys):
    before = {*folder.iterdir()}
    for name in ("x.npz", "new/y.npz"):
        command(monkeypatch, capsys, "embed", "backbone=glyph", "set", "--out", name)
    assert (folder / "x.npz").read_bytes() == (folder / "new" / "y.npz").read_bytes()
    assert {*folder.iterdir()} - before == {folder / "x.npz", folder / "new"} and len([*(folder / "new").iterdir()]) == 1


def test_inputs_are_listed_and_written_in_parts(run, folder, monkeypatch, capsys):
    command(monkeypatch, capsys, "embed", run, "set", "--out", "x.npz")
    monkeypatch.setattr(predict, "HELD", 2)
    monkeypatch.setattr(embed, "ROWS", 2)
    command(monkeypatch, capsys, "embed", run, "set", "--out", "y.npz")
    whole, parts = np.load("x.npz"), np.load("y.npz")
    assert np.allclose(whole["features"], parts["features"], atol=1e-5) and whole["names"].tolist() == parts["names"].tolist()


def test_parquet_has_the_same_rows(run, folder, monkeypatch, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(embed, "ROWS", 2)
    for name in ("x.npz", "x.parquet"):
        assert command(monkeypatch, capsys, "embed", run, "set", "--out", name, "--batch-size", 1)[0] == 0
    table, expected = parquet.read_table("x.parquet"), np.load("x.npz")
    assert table["name"].to_pylist() == expected["names"].tolist()
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), expected["features"])


def test_texts_are_named_by_their_numbers_in_npz_and_a_long_one_does_not_make_the_array_large(tmp_path):
    pytest.importorskip("transformers")
    texts = ["short", "what is the " * 3000, "is the"]
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(texts) + "\n")
    network = network_of(load_bert(str(save_model(tmp_path / "model")), max_length=12))
    assert embed.embed(network, [str(tmp_path / "texts.csv")], embed.EmbedOptions(str(tmp_path / "x.npz"), batch_size=2, workers=0)) == 0
    names = np.load(tmp_path / "x.npz")["names"]
    assert names.tolist() == ["0", "1", "2"] and names.nbytes < 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("glyph", "set", "--out", "x.csv"), "--out x.csv: give a file that ends with .npz or .parquet"),
        (("glyphs", "set", "--out", "x.npz"), "there is no file or folder glyphs, and no backbone of this name: did you mean 'glyph'?"),
        (("runs/none", "set", "--out", "x.npz"), "there is no file or folder runs/none"),
        (("set", "set", "--out", "x.npz"), "the folder set is not that of a run: give the folder that ftlit train printed at its end"),
        (
            ("set", "backbone.cut=stem", "set", "--out", "x.npz"),
            "'set' is the folder of a run, which has its backbone already: leave backbone.cut=stem out",
        ),
        (
            ("glyph", "backbone.cut=stem", "--out", "x.npz"),
            "no images are given, only backbone.cut=stem: add paths of images, or of folders with images, to the command",
        ),
        (("glyph", "backbone.weight=x", "set", "--out", "x.npz"), "did you mean 'backbone.weights'?"),
        (("glyph", "set", "--out", "x.npz", "--cut", "layer9"), "no layer 'layer9'"),
        (("glyph", "set", "--out", "x.npz", "--pooling", "mean"), "pooling=mean is not valid"),
        (("glyph", "set", "--out", "x.npz", "--batch-size", "0"), "--batch-size 0: give a whole number, 1 or more"),
        (("glyph", "none.png", "--out", "x.npz"), "x.npz was not written, because none of the images can be used"),
        (("glyph", "set", "--out", "list.csv/x.npz"), "because a file has that name"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(folder, monkeypatch, capsys, arguments, message):
    code, out, err = command(monkeypatch, capsys, "embed", *arguments)
    assert code == 2 and not out and message in err.splitlines()[-1] and not (folder / "x.npz").exists()
    assert len(err.splitlines()) == 1 + ("none.png" in arguments)


def test_a_parquet_file_without_pyarrow_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    code, _, err = command(monkeypatch, capsys, "embed", "glyph", "set", "--out", "x.parquet")
    assert code == 2 and err == 'ftlit: a .parquet file needs pyarrow: pip install "ftlit[parquet]", or give --out with a .npz file\n'


def test_features_that_are_not_finite_have_no_row(folder, monkeypatch, capsys):
    backbone = load_backbone("glyph", weights=None)
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    broken = save_run(folder / "broken", backbone)
    code, _, err = command(monkeypatch, capsys, "embed", broken, "set/a.png", "--out", "x.npz")
    assert code == 2 and err.startswith("ftlit: set/a.png: the network gives features that are not finite numbers")
