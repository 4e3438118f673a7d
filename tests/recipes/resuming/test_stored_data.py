"""The images of a run are found again by its config alone, and nothing that the config names is imported."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import warm
import yaml
from paths import ROOT
from PIL import Image

from ftlit import UserError, load
from ftlit.cli import main
from ftlit.data.splitting.stored_split import read_split
from ftlit.formats import read_json, write_json
from ftlit.recipes.resuming.stored_data import moved_photos, places_of, train_examples

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on eight images of each of two classes, with its photos beside it."""
    folder = tmp_path_factory.mktemp("stored")
    for name in ("ants", "bees"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            values = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(folder / "photos" / name / f"{number}.png")
    words = ["data=folder", f"data.root={folder / 'photos'}", "debug=fast", "trainer=cpu", f"hydra.run.dir={folder / 'run'}"]
    done = warm.run([sys.executable, ROOT / "train.py", *words], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_training_images_are_those_of_the_split_of_the_run(run):
    found, why = train_examples(run, load(run))
    assert why == "" and 0 < len(found) < 16
    assert all(path.parts[-2] == ("ants", "bees")[label] for path, (label,) in zip(found.sources, found.labels, strict=True))


def test_data_that_were_moved_are_named_and_found_at_their_new_place(run, tmp_path, monkeypatch):
    network, old = load(run), run.parent / "photos"
    expected, _ = train_examples(run, network)
    shutil.copytree(old, tmp_path / "new")
    old.rename(run.parent / "away")
    try:
        found, why = train_examples(run, network)
        assert found is None and why == f"there is no data.root={old}; if the data were moved, add data.root=... to the command"
        found, why = train_examples(run, network, places_of([f"data.root={tmp_path / 'new'}"], "ftlit demo"))
        assert why == "" and [path.relative_to(tmp_path / "new") for path in found.sources] == [
            path.relative_to(old) for path in expected.sources
        ]
        assert train_examples(run, network, {"csv": "x.csv"}) == (None, f"the data of {run} have no option data.csv")
        assert train_examples(run, network, {"root": "/no"}) == (None, "there is no data.root=/no")
        for path in (tmp_path / "new").rglob("*.png"):
            Image.new("RGB", (32, 32), (len(path.name), *path.name.encode()[:2])).save(path)
        assert train_examples(run, network, {"root": str(tmp_path / "new")})[1].startswith("none of the images of the run is among")
        home = Path.home() / "no_photos"  # `~` is no folder of the current one
        assert train_examples(run, network, {"root": "~/no_photos"}) == (None, f"there is no data.root={home}")
    finally:
        (run.parent / "away").rename(old)
    for word, says in (("data.rot=x", "did you mean 'data.root'"), ("data.root=", "has no value"), ("x", "give one of data.root")):
        with pytest.raises(UserError, match=says):
            places_of([word], "ftlit demo")


def test_data_of_a_users_own_are_not_imported_and_missing_ones_have_a_reason(run, tmp_path):
    network, moved = load(run), tmp_path / "run"
    assert train_examples(run / "checkpoints", network)[0] is None
    shutil.copytree(run, moved)
    (tmp_path / "evil.py").write_text("raise AssertionError")
    config = yaml.safe_load((moved / "config.yaml").read_text())
    root = config["data"]["root"]
    config["data"]["root"] = {"_target_": "evil.read"}
    del config["checksum"]
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    assert train_examples(moved, network)[0] is None
    config["data"] |= {"root": root, "_target_": "evil.read"}
    config["registered"].pop("data")
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    assert train_examples(moved, network) == (None, "the data of this run are read by code of its own")


def test_a_data_set_that_can_be_downloaded_is_not_refused_because_its_folder_is_gone(run, tmp_path):
    network, moved = load(run), tmp_path / "run"
    shutil.copytree(run, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    del config["checksum"]
    config["registered"]["data"] = "data:torchvision"
    for download, why in ((False, "there is no data.root=/no; if the data were moved"), (True, "torchvision has no data set 'Nothing'")):
        config["data"] = {"_target_": config["data"]["_target_"], "name": "Nothing", "root": "/no", "download": download}
        (moved / "config.yaml").write_text(yaml.safe_dump(config))
        assert train_examples(moved, network)[1].startswith(why)
    assert train_examples(moved, network, {"root": "/none"})[1] == "there is no data.root=/none"


def test_an_export_that_prepares_images_is_compared_where_the_data_are_now_and_lies_beside_the_plain_file(
    run, tmp_path, monkeypatch, capsys
):
    moved, old = tmp_path / "run", run.parent / "photos"
    shutil.copytree(run, moved)
    shutil.copytree(old, tmp_path / "new")

    def export(*words):
        monkeypatch.setattr(sys, "argv", ["ftlit", "export", str(moved), "--to", "torch", *words])
        try:
            main.main()
            return capsys.readouterr().err
        except SystemExit as end:
            return f"{end.code}: {capsys.readouterr().err}"

    export()
    plain = (moved / "export/torch/glyph.pt2").read_bytes()
    old.rename(run.parent / "away")
    try:
        error = export("--with-preprocessing")
        remedy = "; if the data were moved, add data.root=FOLDER or data.csv=FILE to the command\n"
        assert "the run has no test images whose files are there, so the file was not compared" in error and error.endswith(remedy)
        assert "data.root" not in (moved / "export/torch-with-preprocessing/README.md").read_text()  # it is for other readers
        test = len(read_split(moved).images["test"])
        error = export("--with-preprocessing", f"data.root={tmp_path / 'new'}")
        assert test and f"name the same class for {test} of {test} test images of the run\n" in error
        card, script = ((moved / "export/torch-with-preprocessing" / name).read_text() for name in ("README.md", "predict.py"))
        assert "glyph.pt2, " in card and "here / 'glyph.pt2'" in script
        assert (moved / "export/torch/glyph.pt2").read_bytes() == plain
        assert (
            export("--with-preprocessing", "data.root=/no")
            == f"2: ftlit: the test images of {moved} are not found: there is no data.root=/no\n"
        )
        assert "2: ftlit: 'data.root=/no' has no effect without --with-preprocessing" in export("data.root=/no")
        assert "ftlit export RUN has no option data.rot: did you mean 'data.root'?" in export(
            "--with-preprocessing", "data.rot=/no"
        ).replace("'data.rot'", "data.rot")
        network = load(moved)
        write_split_without_test(moved)
        photos = moved_photos(moved, network, {"root": str(tmp_path / "new")})
        assert photos.split == "train" and photos.paths and all(path.is_relative_to(tmp_path / "new") for path in photos.paths)
    finally:
        (run.parent / "away").rename(old)


def write_split_without_test(run):
    content = read_json(run / "split.json")
    content["splits"]["test"] = {name: [] for name in content["splits"]["test"]}
    write_json(run / "split.json", content)
