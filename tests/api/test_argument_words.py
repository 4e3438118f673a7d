"""Arguments in Python as words of a command line."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import ftlit
from ftlit import UserError
from ftlit.api.calls import IN_OPTIONS
from ftlit.api.words import text_of, words_of
from ftlit.cli.command_words import complete
from ftlit.recipes.config.hydra_internals import fresh_hydra

TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\0$"), max_size=8)
NAMES = st.from_regex(r"[a-z_][a-z_ ,:(]{0,5}", fullmatch=True).filter(lambda name: name not in ("null", "true", "false", "nan", "inf"))
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)


@given(VALUES)
def test_hydra_reads_a_value_as_it_was_given(value):
    read = OverridesParser.create().parse_override(f"name={text_of(value)}").value()
    assert plain(read) == value


def plain(value):
    """A value that Hydra read, with quoted texts as texts."""
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {plain(name): plain(inner) for name, inner in value.items()}
    return getattr(value, "text", value)


def test_a_folder_a_csv_file_and_the_name_of_an_option_are_data(tmp_path):
    (tmp_path / "a (1)").mkdir()
    for column in ("path", "text"):
        (tmp_path / f"{column}.csv").write_text(f"{column},label\nx,y\n")
    assert words_of(tmp_path / "a (1)", {}) == ["data=folder", f"data.root='{tmp_path}/a (1)'"]
    assert words_of(str(tmp_path / "path.csv"), {}) == ["data=csv", f"data.csv={tmp_path}/path.csv"]
    assert words_of(tmp_path / "text.csv", {})[0] == "data=text_csv"
    assert words_of("digits", {"backbone": "glyph", "scenario": None, "trainer.max_epochs": 2}, {"seed": 1}) == [
        *("data=digits", "backbone=glyph", "trainer.max_epochs=2", "seed=1")
    ]


def test_a_number_of_numpy_is_one_of_python():
    assert [text_of(value) for value in (np.float64(0.001), np.int64(3), np.bool_(True), np.float32(0.5))] == ["0.001", "3", "true", "0.5"]


def test_a_folder_with_the_name_of_an_option_is_not_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(UserError, match=r"digits is a folder here and an option of data: give '\./digits' for the folder"):
        words_of("digits", {})
    assert words_of("./digits", {}) == ["data=folder", "data.root=digits"] == words_of(Path("digits"), {})


@pytest.mark.parametrize(
    ("data", "options", "line"),
    [
        ("digits", {"data.root": "photos"}, "data.root is given twice"),
        ("no/photos", None, "there is no folder or file 'no/photos'"),
        (None, {"optimizer.lr=1": 2}, "is not the name of an option"),
        (None, {"head": object()}, "has the type object: give a text, a number"),
    ],
)
def test_what_no_option_can_have_is_a_user_error(data, options, line):
    with pytest.raises(UserError, match=line):
        words_of(data, {}, options)


def test_a_folder_on_the_command_line_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.csv").write_text("name,label\n")
    (tmp_path / "b.txt").write_text("")
    assert complete(["photos", "seed=1"]) == complete(["data=folder", "data.root=photos", "seed=1"])
    assert complete(["--config-dir", "photos", "seed=1"]) == ["--config-dir", "photos", "seed=1"]
    (tmp_path / "c.csv").write_text("photo;label;Image_Path\n")
    (tmp_path / "d.csv").write_text("file,text\n")
    for words, chosen in (
        (["c.csv"], ["data=csv", "data.csv=c.csv", "data.path_column=Image_Path"]),  # the one usual name of such a column
        (["d.csv"], ["data=text_csv", "data.csv=d.csv"]),
        (["a.csv", "data.path_column=name"], ["data=csv", "data.csv=a.csv", "data.path_column=name"]),
        (["a.csv", "data.text_column=name"], ["data=text_csv", "data.csv=a.csv", "data.text_column=name"]),
    ):
        assert complete(words) == complete(chosen)
    assert words_of("a.csv", {}, {"data.text_column": "name"}) == ["data=text_csv", "data.csv=a.csv", "data.text_column=name"]
    for words, line in (
        (["phtos"], "there is no folder 'phtos': did you mean 'photos'"),
        (["photos", "data=digits"], "photos and data=digits both choose the data: leave one of them out"),
        (
            ["a.csv"],
            "^a.csv has no column path or text, its columns are name, label: add data.path_column=name for images, or ",
        ),
        (["b.txt"], "b.txt is a file: give a folder with one folder per class, or a csv file"),
    ):
        with pytest.raises(UserError, match=line):
            complete(words)


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("lr", r"^finetune has no argument 'lr': give options={'optimizer\.lr': \.\.\.}$"),
        ("max_epochs", r"give epochs=\.\.\.$"),
        ("backbon", r"did you mean 'backbone'\?"),
    ],
)
def test_an_argument_that_is_an_option_says_where_to_give_it(argument, line):
    with pytest.raises(UserError, match=line):
        ftlit.finetune("photos", **{argument: 1})


def test_options_in_place_of_arguments_exist():
    with fresh_hydra():
        cfg = compose("train")
    for option in IN_OPTIONS.values():
        group = option.partition(".")[0]
        assert group in cfg, option
