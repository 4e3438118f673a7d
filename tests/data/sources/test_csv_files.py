"""Csv files: what cannot be read as meant is one line with the file and the line."""

from pathlib import Path

import pytest

from ftlit.data.csv_format import CsvFormat
from ftlit.data.sources.csv_files import check_columns, read_csv
from ftlit.errors import UserError


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "list.csv is empty: give a header line"),
        ("\n\n", "list.csv is empty"),
        ("path,label\nx.png,ant, big\n", "list.csv, line 2 has 3 values, but the header has 2 columns ('path', 'label'): put a value that"),
        ("path,label,label\nx.png,ant,bee\n", "list.csv has several columns with the same name (label)"),
        ('path,label\na.png,ant\nx.png,"ant\ny.png,bee\n', "the row that begins in line 3 has a double quote that is never closed"),
        ('path,label\nx.png,"ant"s\n', "the row that begins in line 2 has a double quote inside a value in double quotes: write each"),
        ('"path,label\n', "cannot be read as csv: the row that begins in line 1 has a double quote that is never closed: add"),
    ],
)
def test_a_file_that_would_lose_values_is_an_error(tmp_path, text, says):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        read_csv(tmp_path / "list.csv")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_empty_fields_at_the_end_of_a_row_and_spaces_in_the_header_lose_nothing(tmp_path):
    (tmp_path / "list.csv").write_text("\ufeffpath, label\nx.png,ant,,\n\ny.png,bee\n")
    columns, rows = read_csv(tmp_path / "list.csv")
    assert columns == ["path", "label"]
    assert [(where[-6:], row) for where, row in rows] == [
        ("line 2", {"path": "x.png", "label": "ant"}),
        ("line 4", {"path": "y.png", "label": "bee"}),
    ]


def test_a_file_without_a_header_is_said_to_have_none():
    with pytest.raises(UserError, match=r"the first line of .*list\.csv is data \(a/0\.png, ant\), not a header: insert a first line"):
        check_columns(Path("list.csv"), ["a/0.png", "ant"], {"path_column": "path", "label_column": "label"})


def test_a_mistyped_column_is_an_error_with_the_words_to_give_and_only_the_default_of_split_may_be_missing():
    path, known = Path("labels.csv"), ["path", "label", "split"]
    check_columns(path, ["path", "label"], {"path_column": "path", "label_column": "label", "split_column": "split", "group_column": None})
    for option, column, meant in (
        ("split_column", "splitt", "split"),
        ("group_column", "paths", "path"),
        ("text_column", "Label", "label"),
    ):
        with pytest.raises(UserError) as caught:
            check_columns(path, known, {option: column})
        words = f"labels.csv has no column {column!r}: did you mean data.{option}={meant}? The file has the columns path, label, split"
        assert str(caught.value) == words
    with pytest.raises(
        UserError, match=r"labels.csv has no column 'fold9': give data.split_column=...; the file has the columns path, label"
    ):
        check_columns(path, ["path", "label"], {"split_column": "fold9"})


@pytest.mark.parametrize(
    ("encoding", "separator", "mark"),
    [
        ("cp1252", None, ";"),
        ("utf-16", None, "\t"),
        ("utf-8", "|", "|"),
        ("UTF-8", "tab", "\t"),
        ("latin-1", r"\t", "\t"),
        ("utf8", ";", ";"),
    ],
)
def test_encoding_and_separator_are_those_that_are_given(tmp_path, encoding, separator, mark):
    (tmp_path / "list.csv").write_text(f"path{mark}label{mark}a b\nä.png{mark}Mü,cke{mark}1\n", encoding=encoding)
    columns, rows = read_csv(tmp_path / "list.csv", CsvFormat(encoding, separator))
    assert columns == ["path", "label", "a b"] and rows[0][1] == {"path": "ä.png", "label": "Mü,cke", "a b": "1"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"encoding": "cp12520"}, "data.encoding=cp12520 is not a text encoding of Python: give utf-8, cp1252"),
        ({"encoding": "hex"}, "data.encoding=hex is not a text encoding"),
        ({"separator": "::"}, "data.separator='::': give one character"),
        ({"separator": ""}, "data.separator='': give one character"),
        ({"separator": "\n"}, r"data.separator='\n': give one character"),
    ],
)
def test_a_format_that_no_file_can_have_is_an_error(given, says):
    with pytest.raises(UserError) as caught:
        CsvFormat(**given)
    assert says in str(caught.value)


def test_a_file_in_another_encoding_or_with_another_separator_is_an_error_with_the_option_to_give(tmp_path):
    for text, form, says in (
        ("Mücke".encode("cp1252"), CsvFormat(), "list.csv is not encoded in UTF-8: give its encoding"),
        (
            "Mücke".encode("cp1252"),
            CsvFormat("utf-16"),
            "is not encoded in UTF-16: give its encoding, such as data.encoding=cp1252, or save it as UTF-8 ",
        ),
        ("Mücke".encode(), CsvFormat("ascii"), "give its encoding, such as data.encoding=utf-16, or save"),
    ):
        (tmp_path / "list.csv").write_bytes(b"path,label\na.png," + text)
        with pytest.raises(UserError) as caught:
            read_csv(tmp_path / "list.csv", form)
        assert says in str(caught.value)
    for header, says in (("path|label", "'data.separator=|'"), ("path:label", "data.separator=:"), ("path\tlabel", "data.separator=tab")):
        with pytest.raises(UserError) as caught:
            check_columns(Path("list.csv"), [header], {"path_column": "path", "label_column": "label"})
        assert str(caught.value).endswith(says) and "has no column 'path', 'label', only" in str(caught.value)
