"""A name in a line of the console cannot drive the terminal, be read as markup, or break the plan's row."""

from types import SimpleNamespace

from omegaconf import OmegaConf

from ftlit.recipes.console.plan_rows import print_plan
from ftlit.recipes.console.printing import print_line

NAME = "\x1b[31mred\x07 [bold]\u202e"


def test_control_characters_and_markup_are_printed_as_text(capsys):
    print_line(NAME)
    assert capsys.readouterr().out == "\\x1b[31mred\\x07 [bold]\\u202e\n"


def test_a_row_of_the_plan_stays_one_row(capsys, tmp_path):
    plan = SimpleNamespace(warnings=[NAME])
    print_plan(OmegaConf.create(), [("classes", f"a\nb: 3, {NAME}: 4")], plan, tmp_path, trains=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "classes  a\\nb: 3, \\x1b[31mred\\x07 [bold]\\u202e: 4"
    assert lines[-1] == "doctor  \\x1b[31mred\\x07 [bold]\\u202e"
