"""The command `ftlit` apart from its subcommands."""

import sys

import pytest

from ftlit.cli import main


@pytest.mark.parametrize("command", ["predict", "report", "export", "cache"])
def test_ctrl_c_ends_every_command_in_a_line(command, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(main.COMMANDS, command, interrupted)
    monkeypatch.setattr(sys, "argv", ["ftlit", command])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 130 and capsys.readouterr().err == "ftlit: interrupted\n"
