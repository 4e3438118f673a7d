"""Layouts of folders: found from the whole tree, given, or refused with the layouts to choose from."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from ftlit.data.sources.folder_files import FolderImages, list_folder, list_unlabelled
from ftlit.data.splitting.split_names import split_named
from ftlit.errors import UserError


def tree(root: Path, *folders: str, images: int = 2) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            Image.new("RGB", (2, 2)).save(root / folder / f"{i}.png")
    return root


def found(root: Path, **how) -> set[tuple[str, str, str | None]]:
    return {(file.split, file.labels[0], file.group) for file in list_folder(root, **how)[0]}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("TRAIN_set", "train"),
        ("trainset", "train"),
        ("test images", "test"),
        ("Testing", "test"),
        ("dev", "val"),
        ("evaluation", "val"),
        ("valid", "val"),
        ("monday", None),
        ("train station", None),
        ("data", None),
        ("train_test", None),
        ("", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_named(name) == split


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "dev"), ("seg_train", "seg_test"), ("training_set", "test_set")])
def test_folders_with_the_names_of_splits_are_splits(tmp_path, names):
    tree(tmp_path, *(f"{name}/{label}" for name in names for label in ("fox", "hare")))
    assert {label for _, label, _ in found(tmp_path)} == {"fox", "hare"} and len({split for split, _, _ in found(tmp_path)}) == 2


def test_a_folder_that_an_archive_repeats_in_itself_is_looked_through(tmp_path):
    tree(tmp_path, *(f"{name}/{name}/{label}" for name in ("training_set", "test_set") for label in ("cats", "dogs")))
    assert found(tmp_path) == {(split, label, None) for split in ("train", "test") for label in ("cats", "dogs")}


@pytest.mark.parametrize("classes", [("training", "resting"), ("train", "bus"), ("test", "bus", "car"), ("train", "val", "bus", "car")])
def test_classes_may_have_the_names_of_splits(tmp_path, classes):
    files, notes = list_folder(tree(tmp_path, *classes))
    assert {(file.split, file.labels[0]) for file in files} == {("train", name) for name in classes}
    named = ", ".join(sorted(name for name in classes if split_named(name)))
    assert notes == [
        f"folders named like splits ({named}) are read as classes, because there are other class folders "
        "beside them; to read them as splits, give data.layout=split/class"
    ]
    assert list_folder(tmp_path, layout="class") == (files, [])
    with pytest.raises(UserError, match="in the layout split/class"):
        list_folder(tmp_path, layout="split/class")


def test_a_class_has_the_name_of_a_split_within_a_split(tmp_path):
    tree(tmp_path, *(f"{split}/{label}" for split in ("train", "test") for label in ("train", "bus")))
    assert found(tmp_path) == {(split, label, None) for split in ("train", "test") for label in ("train", "bus")}


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (
            ("mon/fox", "mon/hare", "tue/fox", "tue/hare"),
            "If the classes are fox, hare: give data.layout=group/class. If the classes are mon, tue: give data.layout=class, or ",
        ),
        (("mon/fox", "mon/hare", "tue/fox", "wed/hare"), "has two levels of folders, and either may be the classes"),
        (
            ("2024/mon/fox", "2024/mon/hare", "2025/mon/fox", "2025/tue/hare"),
            "If the classes are fox, hare: give data.layout=group/group/class.",
        ),
        (("siteA/fox", "siteA/hare", "siteB/fox", "siteB/owl"), "data.layout=group/class"),
        (("p1/v1/fox", "p1/v1/hare", "p2/v1/fox", "p2/v1/hare"), "data.layout=group/group/class"),
        (
            ("train/fox", "train/hare", "test/fox", "unlabelled"),
            "has folders of splits (test, train) and others (unlabelled): give data.layout=split/class to ignore",
        ),
        (("train/a/fox", "train/a/hare", "train/b/fox", "train/b/hare", "test/a/fox"), "data.layout=split/group/class"),
        (("fox/train", "fox/test", "hare/train", "hare/test"), "set data.layout=class/split"),
        (("train/fox", "train/hare", "dev/fox", "eval/fox"), "has 2 folders for the split val (dev, eval): move"),
        (
            ("train/fox", "train/hare", "more/fox"),
            "data.layout=class if all these folders are classes, or rename folders of splits to",
        ),
        (("learn/fox", "val/fox", "test/fox"), "has no folder train, only learn, test, val: rename the folder with"),
        (("Training", "Testing/fox"), "and no class folders"),
        (("train", "test"), "make one folder per class, or give data.layout=class if test is itself a class"),
        (("train", "test", "more"), "data.layout=class if all these folders are classes"),
    ],
)
def test_a_structure_that_may_mean_several_things_is_one_line(tmp_path, folders, says):
    with pytest.raises(UserError) as caught:
        list_folder(tree(tmp_path, *folders))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_empty_class_folders_and_a_folder_of_one_class_are_named_in_the_error(tmp_path):
    for name in ("fox", "hare"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"the folders in .*empty \(fox, hare\) hold no images: put the images of each class into its folder"
    ):
        list_folder(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"\(fox, hare\) hold no images"):
        list_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="no image files, only 1 other file; its folders fox, hare hold no images: give a folder with"):
        FolderImages(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").unlink()
    with pytest.raises(UserError, match=r"no image files, only empty folders \(fox, hare\): give a folder with images"):
        FolderImages(tmp_path / "empty")
    tree(tmp_path / "photos", "fox", "hare")
    with pytest.raises(UserError, match=f"no class folders: did you mean {tmp_path / 'photos'}"):
        list_folder(tmp_path / "photos" / "fox")


def test_a_proposed_folder_is_written_as_the_given_one(tmp_path, monkeypatch):
    tree(tmp_path / "photos", "fox", "hare")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UserError, match=r"did you mean \.\./photos\?"):
        list_folder(Path("../photos/fox"))
    with pytest.raises(UserError, match=r"^\.\. has no folder 'fotos': did you mean 'photos'"):
        list_folder(Path("../fotos"))


def test_a_given_layout_names_classes_splits_and_groups(tmp_path):
    days = tree(tmp_path / "days", "mon/fox", "mon/hare", "tue/fox", "tue/hare")
    assert found(days, layout="group/class") == {("train", label, day) for label in ("fox", "hare") for day in ("mon", "tue")}
    assert found(days, layout="class/group") == {("train", day, label) for label in ("fox", "hare") for day in ("mon", "tue")}
    assert found(days, layout="class") == {("train", day, None) for day in ("mon", "tue")}
    inner = tree(tmp_path / "inner", "fox/train", "fox/test", "hare/train")
    assert found(inner, layout="class/split") == {("train", "fox", None), ("test", "fox", None), ("train", "hare", None)}


def test_folders_beside_splits_are_left_out_by_a_given_layout(tmp_path):
    tree(tmp_path, "seg_train/fox", "seg_train/hare", "seg_test/fox", "seg_pred")
    assert found(tmp_path, layout="split/class") == {("train", "fox", None), ("train", "hare", None), ("test", "fox", None)}
    assert list_folder(tmp_path, layout="split/class")[1] == [
        "images outside of the class folders are ignored (2): seg_pred/0.png, seg_pred/1.png"
    ]


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("classes", "did you mean 'class'"),
        ("group", "data.layout=group lacks the level class: give it exactly once"),
        ("class/class", "has the level class 2 times: give it exactly once"),
        ("split/class/split", "has the level split 2 times: give it at most once"),
    ],
)
def test_an_unknown_layout_is_one_line(tmp_path, layout, says):
    with pytest.raises(UserError, match=says):
        list_folder(tree(tmp_path, "fox", "hare"), layout=layout)


def test_a_pattern_names_groups(tmp_path):
    for i in range(6):
        Image.new("RGB", (2, 2)).save(tree(tmp_path, "fox", "hare", images=0) / "fox" / f"p{i // 2}_{i}.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "hare" / "x.png")
    files, notes = list_folder(tmp_path, group_pattern=r"/(p\d+)_")
    assert [file.group for file in files] == ["p0", "p0", "p1", "p1", "p2", "p2", None]
    assert notes == ["data.group_pattern does not match the paths of 1 of 7 images (hare/x.png), so these images are in no group"]
    for pattern, says in (("(", "is not a valid regular expression"), ("cow", "matches none of the image paths")):
        with pytest.raises(UserError, match=says):
            list_folder(tmp_path, group_pattern=pattern)


def begin_run(folder: Path) -> Path:
    """Write some of the files of a run."""
    tree(folder, "checkpoints", images=0)
    tree(folder, "report")
    (folder / "report" / "run.json").touch()
    (folder / "config.yaml").write_text("seed: 0\nbackbone:\n  _target_: ftlit.zoo.build.build_backbone\n")
    (folder / "checkpoints" / "best.ckpt").touch()
    (folder / "metrics.csv").touch()
    Image.new("RGB", (2, 2)).save(folder / "probe.png")
    return folder


def test_empty_folders_and_folders_of_runs_are_left_out_with_a_note(tmp_path):
    tree(tmp_path, "fox", "hare", "runs/2026/1/report", "mine/wandb/media")
    tree(tmp_path, "new/run", "cow", images=0)
    (begin_run(tmp_path / "runs" / "2026" / "1").parent / "mlflow.db").touch()
    begin_run(tmp_path / "mine")
    files, notes = list_folder(tmp_path)
    assert {file.labels for file in files} == {("fox",), ("hare",)}
    assert notes == [
        "folders that hold runs of ftlit are ignored (2): mine, runs/2026/1",
        "folders without files are ignored (2): cow, new",
    ]
    assert len(list_unlabelled(tmp_path)[0]) == 4


@pytest.mark.parametrize("folder", [".", "train", "train/fox", "test/hare", "runs", "train/runs/1", "train/fox/runs/1", "test/hare/mine"])
@pytest.mark.parametrize("splits", [True, False])
def test_a_run_anywhere_in_the_data_changes_neither_images_nor_classes(tmp_path, folder, splits):
    tree(tmp_path, *(f"{split}/{label}" for split in ("train", "test") for label in ("fox", "hare")))
    root = tmp_path if splits else tmp_path / folder.partition("/")[0]
    if not root.is_dir():
        return
    before, unlabelled = list_folder(root)[0], list_unlabelled(root)[0]
    begin_run(tmp_path / folder)
    files, notes = list_folder(root)
    assert (files, list_unlabelled(root)[0]) == (before, unlabelled)
    assert len(notes) == 1 and notes[0].startswith("folders that hold runs of ftlit are ignored (")


@pytest.mark.parametrize("name", ["config.yaml", "job.json", "split.json", "advice.json", "multirun.yaml"])
def test_a_file_of_another_program_makes_no_run_of_a_class_folder(tmp_path, name):
    (tree(tmp_path, "fox", "hare") / "fox" / name).write_text("train: [1, 2]\nlr: 0.1")
    files, notes = list_folder(tmp_path)
    assert [file.labels[0] for file in files] == [*["fox"] * 2, *["hare"] * 2]
    assert notes == [f"files without an image extension are ignored (1): fox/{name}"]


def test_an_empty_class_folder_in_test_is_as_good_as_none(tmp_path):
    tree(tmp_path, "train/fox", "train/hare", "test/fox")
    before = found(tmp_path)
    tree(tmp_path, "test/hare", "runs", "notes", images=0)
    (tmp_path / "notes" / "read.txt").touch()
    assert found(tmp_path) == before
    assert list_folder(tmp_path)[1] == ["folders without files are ignored (2): runs, test/hare"]


def test_images_outside_of_class_folders_are_noted(tmp_path):
    Image.new("RGB", (2, 2)).save(tree(tmp_path, "train/fox", "train/hare") / "train" / "cover.png")
    assert list_folder(tmp_path)[1] == ["images outside of the class folders are ignored (1): train/cover.png"]


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="these file systems take UTF-8 names only")
def test_names_of_classes_and_groups_are_text_whatever_their_bytes(tmp_path):
    tree(tmp_path, *(os.fsdecode(name) for name in (b"\xff1/fox", b"\xff1/caf\xe9", b"\xff2/caf\xe9")))
    files, _ = list_folder(tmp_path, layout="group/class")
    assert {(file.group, file.labels[0]) for file in files} == {(r"\xff1", "fox"), (r"\xff1", r"caf\xe9"), (r"\xff2", r"caf\xe9")}
    assert all(file.path.is_file() for file in files)
    assert {file.group for file in list_folder(tmp_path, layout="class/group", group_pattern=r"xff\d")[0]} == {"xff1", "xff2"}


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_loop_of_links_lists_nothing_twice(tmp_path):
    (tree(tmp_path, "fox", "hare") / "fox" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(list_folder(tmp_path)[0]) == 4


def test_files_without_the_ending_of_an_image_are_left_out_with_a_note_but_never_a_whole_class(tmp_path):
    tree(tmp_path, "fox", "hare")
    for name in ("fox/labels.txt", "hare/clip.mov"):
        (tmp_path / name).write_text("x")
    files, notes = list_folder(tmp_path)
    assert {file.path.suffix for file in files} == {".png"} and len(files) == 4
    assert notes == ["files without an image extension are ignored (2): fox/labels.txt, hare/clip.mov"]
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl/1.heic_").write_text("x")
    advice = "convert images to .png, or move the folder elsewhere if it is no class"
    with pytest.raises(UserError, match=rf"^1 class folder has no file .*owl/1\.heic_\): {advice}$"):
        list_folder(tmp_path)


def test_a_data_set_beside_folders_without_images_or_beside_others_is_proposed(tmp_path):
    tree(tmp_path / "D", "insects/fox", "insects/hare")
    for name in ("weights/x.pth", "docs/readme.txt"):
        (tmp_path / "D" / name).parent.mkdir()
        (tmp_path / "D" / name).touch()
    proposed = f"did you mean {tmp_path / 'D/insects'}"
    with pytest.raises(
        UserError, match=rf"^2 class folders have no file .*: {proposed}\? If not, convert images to \.png, or move the folders"
    ):
        list_folder(tmp_path / "D")
    several = tree(tmp_path / "several", "insects/fox", "insects/hare", "later/fox", "later/hare", "new_photos")
    with pytest.raises(UserError, match=f"If only {several / 'insects'} is the data set: give this folder$"):
        list_folder(several)
    splits = tree(tmp_path / "splits", "train/fox", "train/hare", "test/fox")
    (splits / "test/hare").mkdir()
    (splits / "test/hare/readme.txt").touch()
    with pytest.raises(UserError, match=r"^1 class folder has no file with the ending of an image") as caught:
        list_folder(splits)
    assert "did you mean" not in str(caught.value)
