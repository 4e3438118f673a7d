"""Names that other programs use for an option: the error holds the words to give, and these words compose."""

import re
import shlex

import pytest
from composed_configs import OPTIONS as GROUPS
from composed_configs import composed, error_text

from ftlit.cli.command_words import complete
from ftlit.data.sources.csv_files import check_columns, read_csv
from ftlit.errors import UserError, named_options
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.config.synonyms import CHOICES, OPTIONS, chosen_synonym, synonym


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs=20", "trainer.max_epochs=20"),
        ("trainer.epochs=20", "trainer.max_epochs=20"),
        ("learning_rate=1e-3", "optimizer.lr=1e-3"),
        ("image_size=96", "backbone.input_spec.size=96"),
        ("data.image_size=96", "backbone.input_spec.size=96"),
        ("batch-size=8", "data.batch_size=8"),
        ("output_dir=out", "hydra.run.dir=out"),
        ("resume_from_checkpoint=runs/a/checkpoints/last.ckpt", "resume=true hydra.run.dir=runs/a"),
        ("finetune=true", "scenario=large_similar"),
        ("run_name=first", "hydra.run.dir=runs/first"),
        ("patience=3", "EarlyStopping +callbacks.early_stopping.monitor=val/loss +callbacks.early_stopping.patience=3"),
        ("early_stopping=true", "EarlyStopping +callbacks.early_stopping.monitor=val/loss"),
        ("pretrained=true", "backbone.weights=default"),
        ("backbone.pretrained=False", "backbone.weights=null"),
        ("model=resnet18", "backbone=resnet18"),
        ("dataset=cifar10", "data=torchvision data.name=CIFAR10 data.download=true"),
        ("data_dir=photos/ants", "data=folder data.root=photos/ants"),
        ("dataset=labels.csv", "data=csv data.csv=labels.csv"),
        ("data=cifar10", "data=torchvision data.name=CIFAR10 data.download=true"),
        ("data=imagefolder", "data=folder data.root=..."),
        ("optimizer=adam", "optimizer=adamw"),
        ("trainer=cuda", "trainer=gpu"),
        ("num_classes=5", "the number of classes comes from the data; leave this option out"),
        ("head.num_classes=5", "the number of classes comes from the data; leave this option out"),
    ],
)
def test_the_error_for_a_name_of_another_program_ends_with_the_words_to_give(override, words, monkeypatch):
    assert error_text(monkeypatch, override).endswith(words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "data.note=photos (1)",
            "to give its value as text, write \"data.note='photos (1)'\"; otherwise give group=option or name=value, or a folder of images",
        ),
        ("backbone=ResNet-50", "did you mean 'resnet50'?"),
    ],
)
def test_the_error_for_a_word_that_cannot_be_read_or_a_spelling_gives_the_right_one(override, words, monkeypatch):
    assert words in error_text(monkeypatch, override)


def words_in(error):
    """The words at the end of an error, as Hydra gets them, without the dots that stand for a path."""
    words = re.search("give (.*)", str(error))[1].replace("data.root=...", "data.root=photos")
    return complete(shlex.split(words))


VALUES = {"model": "resnet18", "optim": "sgd", "sched": "cosine", "criterion": "bce", "task": "probe"}
BY_TEMPLATE = {OPTIONS[name]: value for name, value in VALUES.items()}
with named_options():  # no fixture has begun yet
    ERRORS = [synonym(name, BY_TEMPLATE.get(template, "3")) for name, template in OPTIONS.items()]
    CHOICE_ERRORS = [chosen_synonym(*choice.split("=")) for choice in CHOICES]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lr", "auto", "recipe=lr_find"),
        ("device", "cuda:0", "trainer=gpu"),
        ("device", "cuda:1", "trainer=gpu 'trainer.devices=[1]'"),
        ("gpu", 0, "trainer=gpu"),
        ("gpu", True, "trainer=gpu"),
        ("mixed_precision", "bf16", "trainer.precision=bf16-mixed"),
        ("accelerator", "cpu", "trainer=cpu"),
        ("device", "mps", "trainer.accelerator=mps"),
        ("gpus", 0, "trainer=cpu"),
        ("gpus", 2, "trainer=gpu trainer.devices=2"),
        ("amp", False, "trainer.precision=32-true"),
        ("precision", 32, "trainer.precision=32-true"),
        ("precision", "bf16", "trainer.precision=bf16-mixed"),
        ("fp16", True, "trainer.precision=16-mixed"),
    ],
)
def test_the_words_depend_on_the_value_where_it_means_another_option(name, value, words):
    assert str(synonym(name, value)) == f"there is no option {name!r}: give {words}"


def is_choice(word):
    return word.partition("=")[0].lstrip("~") in GROUPS


def test_the_words_of_every_error_choose_options_that_exist():
    for error in [*ERRORS, *CHOICE_ERRORS]:
        for group, _, option in (word.partition("=") for word in filter(is_choice, words_in(error))):
            assert group.startswith("~") or option in GROUPS[group], error


def test_the_values_in_the_words_of_every_error_compose():
    values = {}  # choices -> all values that errors give with them: composed at once
    for error in [*ERRORS, *CHOICE_ERRORS]:
        words = words_in(error)
        assert words, error
        values.setdefault(tuple(filter(is_choice, words)), set()).update(word for word in words if not is_choice(word))
    for choices, given in values.items():
        config = composed(*choices, *sorted(given)) if given else {}
        assert {re.match(r"\+?(\w+)", word)[1] for word in given} <= {*config, "hydra"}


@pytest.mark.parametrize("folder", ["", "timm/"])  # the second is its name on the hub
def test_a_network_of_timm_is_named_with_its_group(folder):
    pytest.importorskip("timm")
    words = "give backbone=timm backbone.name=vit_tiny_patch16_224"
    assert str(chosen_synonym("backbone", f"{folder}vit_tiny_patch16_224")).endswith(words)


def test_a_file_of_weights_is_not_taken_for_the_network_of_timm_that_it_is_named_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50.pth").touch()
    assert "give backbone.weights=resnet50.pth and backbone=..." in str(chosen_synonym("backbone", "resnet50.pth"))


def test_columns_by_other_names_and_semicolons(tmp_path):
    for mark in ",;\t":
        (tmp_path / "a.csv").write_text(f"image{mark}class\na.png{mark}ants\n", encoding="utf-8-sig")
        columns, rows = read_csv(tmp_path / "a.csv")
        assert (columns, rows[0][1]) == (["image", "class"], {"image": "a.png", "class": "ants"})
    with pytest.raises(
        UserError, match=r"has no column 'path', 'label': give data.path_column=image data.label_column=class; the file has the columns"
    ):
        check_columns(tmp_path / "a.csv", columns, {"path_column": "path", "label_column": "label", "group_column": None})
    with pytest.raises(UserError, match=r"has no column 'group': give data.group_column=...; the file has the columns image, class"):
        check_columns(tmp_path / "a.csv", columns, {"path_column": "image", "group_column": "group"})


def test_images_of_a_split_in_a_place_of_their_own_are_answered_with_the_folder_for_them():
    for name, split in (("test", "test"), ("data.test_dir", "test"), ("data.test_root", "test"), ("val", "val"), ("data.val_dir", "val")):
        places = f"put the {split} images into data.root/{split}/CLASS and the training images into data.root/train/CLASS"
        assert str(synonym(name, "photos/x")) == f"there is no option {name!r}: {places}, or use data=csv with a column named split"
    assert synonym("trainer.test", "x") is None
