"""The split in a run's folder: a resumed run gets its images, and weights from a run name the test images that they have seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from ftlit.data.dataset import Examples
from ftlit.data.images import to_rgb
from ftlit.data.input_spec import InputSpec
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.recipes.resuming.split_file import kept_split, seen_notes, store_split


def data(numbers: range, seed: int = 0, **how) -> ImageData:
    train = Examples(list(numbers), [(i % 2,) for i in numbers], to_rgb, [np.array([i]) for i in numbers])
    collection = assemble({"train": train}, ["a", "b"], SplitRule({"val": 0.2, "test": 0.2}, seed))
    return ImageData(collection, InputSpec(size=8), augment="none", num_workers=0, **how)


def config(folder: Path, **how):
    return OmegaConf.create({"paths": {"run": str(folder)}, "data": {"split_from": None}, "resume": True, **how})


def weights_of(folder: Path) -> str:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    return str(folder / "checkpoints" / "best.ckpt")


def test_a_resumed_run_gets_the_split_of_its_folder_also_the_images_that_per_class_leaves_out(tmp_path):
    images = data(range(60), per_class=3)
    store_split(tmp_path, images)
    stored = kept_split(config(tmp_path))["split_from"]
    assert stored.is_whole and len(stored.split_of) == 60
    assert kept_split(config(tmp_path, resume=False)) == {} == kept_split(config(tmp_path / "other"))
    assert kept_split(config(tmp_path, data={"name": "a user's data"})) == {}


def test_data_without_contents_store_no_split(tmp_path):
    train = Examples(range(30), [(i % 2,) for i in range(30)], to_rgb)
    collection = assemble({"train": train}, ["a", "b"], SplitRule({"val": 0.2, "test": 0.2}))
    store_split(tmp_path, ImageData(collection, InputSpec(size=8), augment="none", num_workers=0))
    store_split(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seed", "seen"), [(0, False), (1, True)])
def test_the_plan_says_how_many_test_images_the_run_of_the_weights_has_seen(tmp_path, seed, seen):
    store_split(tmp_path, before := data(range(100)))
    now = data(range(100), seed)
    values = {split: {int(content[0]) for content in part.contents} for split, part in before.collection.splits.items()}
    test = {int(content[0]) for content in now.collection.splits["test"].contents}
    trained, validated = len(test & values["train"]), len(test & values["val"])
    (note,) = seen_notes(weights_of(tmp_path), now)
    assert f"{trained} of the {len(test)} test images are in the train split of that run, {validated} in its val split" in note
    assert (trained > 0) == seen == (f"data.split_from={tmp_path}" in note)


def test_the_note_proposes_no_split_that_is_followed_already_or_would_be_refused(tmp_path):
    store_split(tmp_path, data(range(100)))
    weights, now = weights_of(tmp_path), data(range(100), 1)
    own = ImageData(replace(now.collection, split_off=["val"]), InputSpec(size=8), augment="none", num_workers=0)  # test is the data's
    proposed = [
        "data.split_from" in seen_notes(weights, images, split_from)[0]
        for images, split_from in ((now, None), (now, str(tmp_path / "other")), (now, str(tmp_path)), (own, None))
    ]
    assert proposed == [True, True, False, False]


def test_weights_that_lie_in_no_run_have_no_note(tmp_path):
    weights = weights_of(tmp_path)
    (tmp_path / "config.yaml").write_text("model: resnet\nlr: 0.1")
    (tmp_path / "split.json").write_text('{"train": ["a.png"]}')
    assert seen_notes(weights, data(range(30))) == seen_notes("default", data(range(30))) == seen_notes(None, data(range(30))) == []


@pytest.mark.parametrize(("text", "reason"), [(None, "there is no split.json"), ("{", "is damaged ("), ("newer", "newer ftlit")])
def test_where_the_split_of_the_run_cannot_be_read_the_note_says_why(tmp_path, text, reason):
    (tmp_path / "config.yaml").write_text("format: 1\nbackbone:\n  _target_: ftlit.zoo.build.build_backbone")
    if text is not None:
        (tmp_path / "split.json").write_text('{"format": 99}' if text == "newer" else text)
    (note,) = seen_notes(weights_of(tmp_path), data(range(30)))
    start = f"weights of the run {tmp_path}: it is unknown whether that run trained on the test split of this one ("
    assert note.startswith(start) and reason in note
    assert "\n" not in note and "give the folder of another run" not in note


def test_of_images_that_cannot_be_compared_it_is_not_known_what_the_run_has_seen(tmp_path):
    store_split(tmp_path, data(range(30)))
    train = Examples(range(30), [(i % 2,) for i in range(30)], to_rgb)
    collection = assemble({"train": train}, ["a", "b"], SplitRule({"val": 0.2, "test": 0.2}))
    (note,) = seen_notes(weights_of(tmp_path), ImageData(collection, InputSpec(size=8), augment="none", num_workers=0))
    assert "(these images cannot be compared by content with those of that run)" in note
