"""A name in a line of the console cannot drive the terminal, be read as markup, or break the plan's row. Files get no padding."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from ftlit.printing import print_line
from ftlit.recipes.console.plan_rows import print_plan

NAME = "\x1b[31mred\x07 [bold]\u202e"


def test_control_characters_and_markup_are_printed_as_text(capsys):
    print_line(NAME)
    assert capsys.readouterr().out == "\\x1b[31mred\\x07 [bold]\\u202e\n"


def test_a_row_of_the_plan_stays_one_row(capsys, tmp_path):
    plan = SimpleNamespace(warnings=[NAME])
    print_plan(OmegaConf.create(), [("classes", f"a\nb: 3, {NAME}: 4")], plan, str(tmp_path), trains=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "classes  a\\nb: 3, \\x1b[31mred\\x07 [bold]\\u202e: 4"
    assert lines[-1] == "doctor    \\x1b[31mred\\x07 [bold]\\u202e"


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("200", 200), ("", 160), ("0", 160), ("wide", 160)])
def test_without_a_terminal_the_plan_is_as_wide_as_columns_and_no_line_is_padded(columns, width, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    plan = SimpleNamespace(warnings=[])
    print_plan(OmegaConf.create(), [("data", "word " * 100), ("classes", "two\u2028lines")], plan, str(tmp_path), trains=False)
    *rows, resume = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert resume.startswith("resume ") and width - 5 <= max(map(len, rows)) <= width
    assert all(row == row.rstrip(" ") for row in rows)
    assert rows[-1] == "classes  two\u2028lines"
