"""The command line's answers to single mistakes and odd requests, in process."""

import sys

from ftlit.cli import main


def command(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr of `ftlit`."""
    monkeypatch.setattr(sys, "argv", ["ftlit", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_report_speaks_of_a_sweep_only_where_there_is_one(tmp_path, monkeypatch, capsys):
    for folder in (tmp_path, tmp_path / "nope"):
        code, _, said = command(monkeypatch, capsys, "report", folder)
        assert code == 2 and said.count("\n") == 1 and "no folder of a run that left a report" in said and "report=true" in said
    (tmp_path / "multirun.yaml").write_text("")
    code, _, said = command(monkeypatch, capsys, "report", tmp_path)
    assert code == 2 and "none of its jobs began" in said
