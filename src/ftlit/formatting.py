"""Format numbers, names and commands as text."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # besides those of lines and columns
DIRECTION = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # turns the direction of what follows


def size_in_words(size: float) -> str:
    """A number of bytes with a unit, three digits.

    >>> size_in_words(12_300_000)
    '12.3 MB'
    """
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def three_digits(number: float) -> str:
    """A number with three significant digits, without an exponent.

    >>> three_digits(1548.2), three_digits(91.66), three_digits(0.2)
    ('1,550', '91.7', '0.2')
    """
    return f"{float(f'{number:.3g}'):,g}"


def sizes_in_words(larger: float, smaller: float) -> tuple[str, str]:
    """Two different numbers of bytes, see `size_in_words`; with all digits where three would not tell them apart.

    >>> sizes_in_words(2_830_400, 2_829_900)
    ('2,830,400 B', '2,829,900 B')
    """
    words = size_in_words(larger), size_in_words(smaller)
    return words if words[0] != words[1] else (f"{larger:,.0f} B", f"{smaller:,.0f} B")


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural but for 1.

    >>> count(1, "epoch"), count(2000, "batch"), count(2, "epoch")
    ('1 epoch', '2,000 batches', '2 epochs')
    """
    plural = f"{noun}es" if noun.endswith(("s", "tch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def duration_in_words(seconds: float) -> str:
    """A duration in the unit that suits it, rounded.

    >>> duration_in_words(0.2), duration_in_words(42.4), duration_in_words(150), duration_in_words(9000)
    ('1 s', '42 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"


def printable(name: str) -> str:
    r"""A file name that any terminal and file takes: bytes that are not UTF-8 are written as `\xff`.

    >>> print(printable("caf\udce9.png"))
    caf\xe9.png
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def shown(path: str | Path) -> str:
    """Return a path as printable text. Bytes that are not UTF-8 are escaped; a path with a line break is quoted and escaped."""
    text = printable(str(path))
    return text if text.isprintable() else repr(text)


def shown_folder(folder: str | Path) -> str:
    """Return the absolute path of a folder as printable text, with `~` for the home folder."""
    path, home = Path(folder).expanduser().absolute(), Path.home()
    return shown(Path("~", path.relative_to(home)) if path.is_relative_to(home) else path)


def without_control(text: str) -> str:
    r"""A text for a terminal: control characters, except line breaks and tabs, and those that turn its direction are escaped.

    >>> print(without_control("\x1b[31mred"))
    \x1b[31mred
    """
    return DIRECTION.sub(_escaped, CONTROL.sub(_escaped, text))


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def shell_word(word: str) -> str:
    """A word as a shell reads it. Single quotes inside are put between double quotes, which is easier to read than `shlex.quote`.

    >>> print(shell_word("seed=1"), shell_word("data.root='a (1)'"))
    seed=1 "data.root='a (1)'"
    """
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def shell_command(words: Iterable[str]) -> str:
    """A command as a shell reads it, see `shell_word`."""
    return " ".join(map(shell_word, words))


def harmless(cell: str) -> str:
    r"""A csv cell that a spreadsheet does not take for a formula: an apostrophe before it if it begins as one, and is no number. Control
    characters are escaped.

    >>> print(harmless("=1+1"), harmless("ants"), harmless("-0.5"), harmless("\x1b[31mred"))
    '=1+1 ants -0.5 \x1b[31mred
    """
    cell = CONTROL.sub(_escaped, cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
