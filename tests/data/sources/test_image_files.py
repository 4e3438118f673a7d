"""Image files are listed by folder or by csv, split, and checked by their headers."""

import os
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftlit.data.dataset import Collection
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.folder_files import list_folder
from ftlit.data.sources.image_files import collect, list_csv
from ftlit.data.splitting.splits import SplitRule
from ftlit.errors import UserError

number = count()
RULE = SplitRule({"val": 0.2, "test": 0.2})


def image(path: Path) -> Path:
    """Save an image that differs from all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (*divmod(next(number), 256), 0)).save(path)
    return path


def folder(root: Path, **counts: int) -> Path:
    """Save images: three in root/train/cat for `train__cat=3`."""
    for name, n in counts.items():
        for i in range(n):
            image(root.joinpath(*name.split("__")) / f"{i}.png")
    return root


def of_folder(root: Path, **how) -> Collection:
    files, notes = list_folder(root, **{name: how.pop(name) for name in ("layout", "group_pattern") if name in how})
    collection, _ = collect(files, **{"input_spec": InputSpec(), "on_bad_image": "stop", "rule": RULE, **how})
    collection.notes[:0] = notes
    return collection


def of_csv(path: Path, **how) -> Collection:
    files = list_csv(path, **how)
    several = "label_separator" in how
    return collect(files, input_spec=InputSpec(), on_bad_image="stop", rule=RULE, multilabel=several)[0]


def error_of(call, *args, **how) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_class_folders_are_split_by_seed_and_partition_the_files(tmp_path):
    data = of_folder(folder(tmp_path, cat=10, dog=20))
    assert data.class_names == ["cat", "dog"]
    assert all(number for counts in data.counts.values() for number in counts.values())
    paths = [path for split in data.splits.values() for path in split.sources]
    assert sorted(paths) == sorted(tmp_path.glob("*/*.png"))
    for examples in data.splits.values():
        assert [data.class_names[label] for (label,) in examples.labels] == [path.parent.name for path in examples.sources]


def test_files_are_sorted_by_path(tmp_path):
    for name in ("b/2.png", "a/9.png", "a/10.png", "b/1.png"):
        image(tmp_path / name)
    assert [str(file.path.relative_to(tmp_path)) for file in list_folder(tmp_path)[0]] == ["a/10.png", "a/9.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_kept(tmp_path, val):
    data = of_folder(folder(tmp_path, train__a=3, train__b=3, test__a=1, test__b=1, **{f"{val}__a": 2, f"{val}__b": 1}))
    assert data.counts["val"] == {"a": 2, "b": 1} and data.counts["train"] == {"a": 3, "b": 3}
    assert data.notes == []


def test_a_missing_split_is_split_off_train_with_a_note(tmp_path):
    data = of_folder(folder(tmp_path, train__a=10, train__b=10, test__a=3, test__b=3))
    assert data.counts["test"] == {"a": 3, "b": 3} and min(data.counts["val"].values()) > 0
    (note,) = data.notes
    assert note.startswith("val taken from train by a hash of each example (split_seed=0)") and "val " in note and "test " not in note


def test_files_of_file_managers_are_ignored(tmp_path):
    folder(tmp_path, a=5, b=5)
    for name in (".DS_Store", "a/.hidden.txt", "a/Thumbs.db", "b/desktop.ini", ".git/config", "__MACOSX/a/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert len(list_folder(tmp_path)[0]) == 10


def test_the_error_for_files_that_are_no_images_gives_the_first_three_and_the_count(tmp_path):
    folder(tmp_path, a=5, b=5)
    for i in range(12):
        (tmp_path / "a" / f"note{i:02}.jpg").write_text("a text with the suffix of an image")
    line = error_of(of_folder, tmp_path)
    assert (
        line.startswith("12 of 22 files are not images: ")
        and "give data.on_bad_image=skip, or remove " in line
        and line.endswith("... (12 in all)")
    )
    assert "note02.jpg" in line and "note03.jpg" not in line


def test_skip_leaves_out_truncated_images_and_other_files(tmp_path):
    folder(tmp_path, a=5, b=5)
    (tmp_path / "a" / "note.txt").write_text("x")
    for suffix in ("png", "jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "b" / f"short.{suffix}")
        (tmp_path / "b" / f"short.{suffix}").write_bytes((tmp_path / "b" / f"short.{suffix}").read_bytes()[:-500])
    (tmp_path / "b" / "text.png").write_text("x")
    line = error_of(of_folder, tmp_path)  # the other two have valid headers
    assert "1 of 13 files are not images" in line and "data.on_bad_image=skip" in line
    data = of_folder(tmp_path, on_bad_image="skip")
    assert data.notes[0] == "files without an image extension are ignored (1): a/note.txt"
    assert data.notes[1].startswith("3 of 13 files are ignored, because they cannot be read as images: ")
    assert all(name in data.notes[1] for name in ("text.png", "short.png", "short.jpg"))
    assert sum(len(split) for split in data.splits.values()) == 10


def test_skip_may_not_empty_a_class(tmp_path):
    folder(tmp_path, a=5, b=5, c=0)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.png").write_text("x")
    assert "no file of class c in train can be read as an image: replace the damaged files (" in error_of(
        of_folder, tmp_path, on_bad_image="skip"
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train__a": 3, "train__b": 3, "val__c": 1}, r"val has classes that train lacks \(c\)"),
        (
            {"train__a": 3, "train__b": 3, "unlabelled": 1},
            r"has folders of splits \(train\) and others \(unlabelled\): give data.layout=split/class to ignore the other folders",
        ),
        ({"val__a": 3, "test__b": 3}, "has no folder train, only test, val: rename the folder with the training images to train"),
        (
            {"train__a": 3, "val__a": 3, "valid__a": 3},
            r"has 2 folders for the split val \(val, valid\): move their images into one folder",
        ),
        ({"pets__a": 3, "pets__b": 3}, r"did you mean .*pets\?"),
        ({"pets__train__a": 3, "cars__train__a": 3}, r"did you mean .*cars\?"),
        ({"a": 3}, "give at least two classes"),
        ({"": 3}, "has 3 files and no class folders"),
    ],
)
def test_an_unknown_folder_structure_is_an_error_of_one_line(tmp_path, counts, message):
    folder(tmp_path, **counts)
    with pytest.raises(UserError, match=message):
        of_folder(tmp_path)


def test_the_error_for_a_missing_root_names_the_closest_match(tmp_path):
    (tmp_path / "hymenoptera").mkdir()
    (tmp_path / "hymenopter.txt").touch()
    line = f"{tmp_path} has no folder 'hymenopter': did you mean 'hymenoptera'? The folders there are hymenoptera"
    assert error_of(list_folder, tmp_path / "hymenopter") == line
    below = tmp_path / "hymenopter" / "no" / "where"
    assert error_of(list_folder, below) == f"there is no folder {below}, because {line}"
    assert (
        error_of(of_csv, tmp_path / "hymenoptera" / "x.csv")
        == f"{tmp_path / 'hymenoptera'} has no csv file 'x.csv', and no other files: correct the path"
    )


def test_the_error_for_an_unknown_on_bad_image_lists_the_options(tmp_path):
    assert "give one of stop, skip" in error_of(of_folder, folder(tmp_path, a=3, b=3), on_bad_image="raise")


def test_paths_in_a_csv_are_relative_to_its_folder(tmp_path):
    rows = [f"{image(tmp_path / f'{label}{i}.png').name}, {label}" for i in range(10) for label in ("x", "y")]
    data = of_csv(write(tmp_path / "list.csv", "path,label", *rows))
    assert data.class_names == ["x", "y"] and sum(sum(counts.values()) for counts in data.counts.values()) == 20


def test_a_csv_may_have_other_columns_a_root_and_splits(tmp_path):
    names = [(split, label, f"{split}{label}.png") for split in ("train", "Valid", "test") for label in "ab"]
    rows = [f"{split},{label},{image(tmp_path / 'img' / name).name}" for split, label, name in names]
    path = write(tmp_path / "list.csv", "\ufeffset,kind,file", *rows)
    data = of_csv(path, root=tmp_path / "img", path_column="file", label_column="kind", split_column="set")
    assert data.counts == {split: {"a": 1, "b": 1} for split in ("train", "val", "test")}


def test_a_csv_cell_may_hold_several_labels(tmp_path):
    rows = [f"{image(tmp_path / f'{i}.png').name},{('red|round', 'round | small', '')[i % 3]}" for i in range(15)]
    data = of_csv(write(tmp_path / "list.csv", "path,label", *rows), label_separator="|")
    assert data.multilabel and data.class_names == ["red", "round", "small"]
    assert {split: data.targets(split).shape[1] for split in data.splits} == {"train": 3, "val": 3, "test": 3}
    assert sum(data.targets(split).sum() for split in data.splits) == 20


def test_separate_files_give_val_and_test_with_paths_from_their_own_folders(tmp_path):
    for name in ("a.png", "b.png", "held/a.png", "held/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(tmp_path / name)
    train = write(tmp_path / "train.csv", "path,label", "a.png,x", "b.png,y")
    test = write(tmp_path / "held" / "test.csv", "path,label,split", "a.png,x,train", "c.png,y,")
    files = list_csv(train, others={"val": None, "test": test})
    assert [(str(file.path.relative_to(tmp_path)), file.split) for file in files] == [
        ("a.png", "train"),
        ("b.png", "train"),
        ("held/a.png", "test"),
        ("held/c.png", "test"),
    ]
    again = write(tmp_path / "again.csv", "path,label", "b.png,y")
    line = error_of(list_csv, train, others={"test": again})
    assert f"{train} and {again} list 1 file more than once, {tmp_path / 'b.png'}: " in line
    both = write(tmp_path / "both.csv", "path,label,split", "a.png,x,train", "b.png,y,test")
    line = error_of(list_csv, both, others={"test": test})
    assert f"has rows with test in column 'split', but data.test_csv={test} gives test too: remove those rows" in line
    assert "lists no images" in error_of(list_csv, train, others={"val": write(tmp_path / "empty.csv", "path,label")})


def test_errors_in_a_csv_are_one_line(tmp_path):
    a, b = (image(tmp_path / name).name for name in ("a.png", "b.png"))
    path = tmp_path / "list.csv"
    assert "did you mean 'list.csv'" in error_of(list_csv, write(path, "path,label").with_name("lst.csv"))
    assert "lists no image" in error_of(list_csv, path)
    assert "did you mean data.label_column=label?" in error_of(list_csv, write(path, "path,label", f"{a},x"), label_column="lable")
    assert "no column" in error_of(list_csv, write(path, "path|label", f"{a}|x"))
    assert "no split 'tran': did you mean 'train'" in error_of(list_csv, write(path, "path,label,split", f"{a},x,train", f"{b},y,tran"))
    assert "line 2 has no value in column 'label'" in error_of(list_csv, write(path, "path,label", f"{a},"))
    assert "line 2 has no value in column 'label'" in error_of(list_csv, write(path, "path,label", f"{a}"))
    assert "more than once" in error_of(list_csv, write(path, "path,label", f"{a},x", f"{a},y"))
    line = error_of(list_csv, write(path, "path,label", *(f"none{i:02},x" for i in range(12))))
    assert "lists 12 files that cannot be found" in line and "none02" in line and "none03" not in line
    assert "write / for each \\ (" in error_of(list_csv, write(path, "path,label", "ants\\0.png,x"))
    assert "has no row with train in column 'split'" in error_of(list_csv, write(path, "path,label,split", f"{a},x,test"))
    path.write_bytes("path,label\nä.png,x".encode("latin-1"))
    assert "not encoded in UTF-8: give its encoding" in error_of(list_csv, path)


@pytest.mark.skipif("FTLIT_TEST_DATA" not in os.environ, reason="needs FTLIT_TEST_DATA, a folder of real images")
def test_real_photos_are_listed():
    data = of_folder(Path(os.environ["FTLIT_TEST_DATA"], "images", "hymenoptera"))
    assert data.class_names == ["ants", "bees"] and sum(data.counts["test"].values()) == 153
