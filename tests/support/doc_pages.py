"""README.md and the pages of docs/: their fenced blocks, and the printed output of commands.

A block without a language holds commands. A block of language `text` after it holds the output of its last command, or some lines
of it with `...` for the others. `python tests/support/doc_pages.py` runs these commands and writes what they print today
into the pages, and today's figures into docs/images.
"""

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import warm
from paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STARTS = {"python": [sys.executable], "ftlit": [sys.executable, "-m", "ftlit.cli.main"]}
LEFT_OUT = "..."
INDENT = " " * 10  # of the further lines of a row of the plan
WRITES_DIGIT = "python -c"  # the beginning of the command that does
FIGURES = "runs/figures"  # the run whose figures docs/images holds


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the character of the page at which the text begins."""

    page: Path
    language: str
    text: str
    begin: int

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.page.read_text()[: self.begin].count(chr(10)) + 1}"


@dataclass(frozen=True)
class Sample:
    """A command and the output that a page shows."""

    command: str
    block: Block


@cache
def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(page, found[1], found[2], found.start(2)) for found in FENCE.finditer(page.read_text())]


def all_blocks(language: str) -> list[Block]:
    """The blocks of a language on all pages."""
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def commands(*starts: str) -> list[str]:
    """The different commands of all pages that begin with one of these words."""
    lines = [line for block in all_blocks("") for line in block.text.splitlines() if line.startswith(starts)]
    return list(dict.fromkeys(lines))


def samples() -> list[Sample]:
    """The commands whose output a page shows."""
    found = []
    for page in PAGES:
        command = ""
        for block in blocks(page):
            if block.language == "text" and command:
                found.append(Sample(command, block))
            elif not block.language:
                command = block.text.splitlines()[-1]
    return found


def run(command: str, folder: Path, store: Path) -> list[str]:
    """Run a command of a page in a folder, and return the lines it prints, stderr last, without blank lines and paths of this machine."""
    first, *words = shlex.split(command)
    words = [str(ROOT / word) if word == "train.py" else word for word in words]
    environment = {**os.environ, "FTLIT_CACHE": str(store), "COLUMNS": "160"}
    done = warm.run([*STARTS[first], *words], cwd=folder, env=environment, timeout=600)
    text = done.stdout + done.stderr
    for path, shown in ((str(store), "~/.cache/ftlit"), (f"{folder}/", ""), (f"{ROOT}/train.py", "train.py")):
        text = text.replace(path, shown)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def rows(lines: list[str]) -> list[str]:
    """Lines with the indented lines that continue them: a row of the plan is one text, however a terminal wraps it."""
    found: list[str] = []
    for line in lines:
        if line.startswith(INDENT) and found and found[-1] != LEFT_OUT:
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    return found


def shape(line: str) -> str:
    """A line without what differs between machines and days: numbers, keys, the width of columns."""
    line = re.sub(r"^device .*", "device", line)
    line = re.sub(r"([─━])\1+", r"\1", line)
    line = re.sub(r"\b[0-9a-f]{8}\b", "0", line)
    line = re.sub(r"[≤≥]?\d[\d,.:-]*(e[-+]?\d+)?( [kMG]?B\b)?", "0", line)
    return " ".join(line.split())


def missing(sample: Sample, printed: list[str]) -> list[str]:
    """The lines of a sample that its command does not print, in this order."""
    shapes, lacking = [shape(line) for line in printed], []
    for line in sample.block.text.splitlines():
        if line == LEFT_OUT:
            continue
        if shape(line) not in shapes:
            lacking.append(line)
        else:
            shapes = shapes[shapes.index(shape(line)) + 1 :]
    return lacking


def updated(sample: Sample, printed: list[str]) -> str:
    """The text of a sample with each line replaced by the printed line that is most like it; all printed lines where it is empty."""
    lines, start, printed = [], 0, rows(printed)
    for line in rows(sample.block.text.splitlines()) or ["", *printed]:
        if line in (LEFT_OUT, ""):
            lines += [line] * bool(line)
            continue
        shapes = [shape(other) for other in printed[start:]]
        close = difflib.get_close_matches(shape(line), shapes, n=1, cutoff=0.5)
        if not close:
            print(f"{sample.block.name}: no line like {line!r}")
            continue
        start += shapes.index(close[0]) + 1
        lines.append(printed[start - 1])
    return "".join(f"{line}\n" for line in lines)


def write_digit(folder: Path) -> None:
    """Write `digit.png` by the command of the docs."""
    command = next(command for command in commands(WRITES_DIGIT))
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=folder, check=True)


def prepare(folder: Path) -> None:
    """What the samples need: an image, and photos with weights if the test data is there."""
    write_digit(folder)
    if data := os.environ.get("FTLIT_TEST_DATA"):
        (folder / "photos").symlink_to(Path(data, "images/hymenoptera"))
        (folder / "weights").mkdir()
        (folder / "weights/squeezenet1_1.pth").symlink_to(Path(data, "weights/squeezenet1_1_imagenet_torchvision.pth"))


def outputs(folder: Path) -> dict[str, list[str]]:
    """The commands of all samples and what they print, run once each, in the order of the pages."""
    prepare(folder)
    return {command: run(command, folder, folder / "store") for command in dict.fromkeys(sample.command for sample in samples())}


def main() -> None:
    """Write today's output of each command into its sample."""
    with tempfile.TemporaryDirectory() as folder:
        printed = outputs(Path(folder))
        run(next(command for command in commands("python") if FIGURES in command), Path(folder), Path(folder, "store"))
        for figure in (ROOT / "docs/images").iterdir():
            shutil.copy(Path(folder, FIGURES, "report", figure.name), figure)
    texts = {page: page.read_text() for page in PAGES}
    for sample in reversed(samples()):  # from the end of a page, so that places stay
        page, begin = sample.block.page, sample.block.begin
        texts[page] = texts[page][:begin] + updated(sample, printed[sample.command]) + texts[page][begin + len(sample.block.text) :]
    for page, text in texts.items():
        page.write_text(text)


if __name__ == "__main__":
    main()
