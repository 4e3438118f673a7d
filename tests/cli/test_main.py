"""The command `ftlit` apart from its subcommands."""

import subprocess
import sys

import pytest

from ftlit import UserError
from ftlit.cli import first_checks, main


@pytest.mark.parametrize("command", ["predict", "report", "export", "cache"])
def test_ctrl_c_ends_every_command_in_a_line(command, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(main.COMMANDS, command, interrupted)
    monkeypatch.setattr(sys, "argv", ["ftlit", command])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 130 and capsys.readouterr().err == "ftlit: interrupted\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predict", "runs/insekts", "a.png"], "there is no file or folder runs/insekts"),
        (["predict", ".", "nope.png", "none.csv"], "there is no file or folder nope.png, none.csv"),
        (["embed", "glyph", "nope.png", "--out", "a.npz"], "there is no file or folder nope.png"),
        (["export", "runs/insekts", "--to", "onnx"], "there is no file or folder runs/insekts"),
        (["demo", "runs/insekts"], "there is no file or folder runs/insekts"),
    ],
)
def test_a_path_that_does_not_exist_is_an_error_before_pytorch_is_loaded(words, line, tmp_path):
    program = f"""
import sys
sys.argv = {["ftlit", *words]}
from ftlit.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"ftlit: {line}\n")


def test_a_similar_path_of_images_is_proposed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new_photos").mkdir()
    for words in (["new_photo"], ["x.png", "new_photo"]):
        with pytest.raises(UserError, match=r"^there is no file or folder .*: did you mean new_photos\?$"):
            first_checks.check_inputs(words)


@pytest.mark.parametrize(
    "words", [["--output", "x.csv"], ["--output=x.csv"], ["-o", "x.csv"], ["--out", "x.csv"]], ids=["output", "equals", "o", "out"]
)
def test_a_file_for_predictions_is_answered_with_the_end_of_the_command(words):
    with pytest.raises(UserError, match=rf"^{words[0].partition('=')[0]} x\.csv: .* end the command with > x\.csv instead$"):
        main.predict(["run", "photos", *words])
    first_checks.check_output(["run", "photos", "--dense", "--out", "maps.new"])


def test_loading_is_announced_in_a_terminal_only(monkeypatch, capsys):
    first_checks.print_loading("runs/a")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    first_checks.print_loading("runs/a")
    assert capsys.readouterr().err == "loading PyTorch, then runs/a\n"


def test_a_run_behind_the_images_is_named_with_the_command_to_give(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other", "photos", "more"):
        (tmp_path / name).mkdir()
    for name in ("run", "other"):
        (tmp_path / name / "config.yaml").write_text("_target_: ftlit.x")
    with pytest.raises(UserError, match=r"^the run goes before the images: give ftlit predict run photos more$"):
        first_checks.check_run("photos", ["run", "more"])
    (tmp_path / "a.png").write_bytes(b"an image")
    with pytest.raises(UserError, match=r"give ftlit predict run a\.png$"):
        first_checks.check_run("a.png", ["run"])
    first_checks.check_run("run", ["photos"])
    first_checks.check_run("run", ["other"])  # a folder of images may hold runs
    with pytest.raises(UserError, match="there is no file or folder missing"):
        first_checks.check_run("missing", ["run"])
