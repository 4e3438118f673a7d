"""Errors of the user, one line each: what was given, what is accepted, the closest match."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from functools import partial
from itertools import takewhile
from math import isfinite
from pathlib import Path
from threading import Event

SYNONYMS = {"mean": "average", "avg": "average"}  # of which another name is nearer by its letters

# The groups of options whose names are arguments of functions in Python
GROUPS = "|".join(("average", "backbone", "cache", "data", "head", "loss", "lr_scheduler", "optimizer", "pretrain", "probe", "schedule"))
OPTION = re.compile(rf"(?<![\w./=+-])\+{{0,2}}(?:{GROUPS})\.(?=\w+=)")
TRAINER = re.compile(r"""(?<![\w./=+-])(['"]?)\+{0,2}trainer\.(\w+)=(\.\.\.|\[[^]]*\]|[^\s,;:()'"]*[^\s,;:()'".?!])\1""")
UNTIL = re.compile(r"until=\{metric: ([\w/]+), ([^{}]+)\}")
ENTRY = re.compile(r"(\w+): ([^\s,]+)")
CONSTANT = re.compile(r"(?<=\w=)(null|true|false)\b")
CONSTANTS = {"null": "None", "true": "True", "false": "False"}

_options_named = Event()  # in all threads of this process, see `named_options`


class UserError(ValueError):
    """Input that cannot be used. Its text is one line; the command line prints it and exits with status 2.

    Texts name options as on the command line (`data.root=...`). Outside of `named_options` the error names the argument in Python.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(in_python(part) if isinstance(part, str) and not _options_named.is_set() else part for part in parts))


@contextmanager
def named_options() -> Iterator[None]:
    """Let errors name options as on the command line: for runs of a config, until the end of the block."""
    before = _options_named.is_set()
    _options_named.set()
    try:
        yield
    finally:
        if not before:
            _options_named.clear()


def in_python(text: str) -> str:
    """A text about options of the command line, as one about the arguments of functions.

    Values stay as they are, except in calls: where a path with spaces ends is not known. So do nested names, such as
    `backbone.input_spec.size=96`, and options of groups, such as `trainer=gpu`, which are no arguments of one function.

    >>> in_python("give backbone.weights=/path/to/file.pth, or backbone.weights=null")
    'give weights=/path/to/file.pth, or weights=None'
    >>> in_python("give trainer.devices=1, or cache.pixels=false")
    'give Trainer(devices=1), or pixels=False'
    >>> in_python("give trainer.strategy=ddp. Or give until={metric: val/loss, mode: min, patience: 2}")
    'give Trainer(strategy="ddp"). Or give until=Until("val/loss", mode="min", patience=2)'
    """
    text = TRAINER.sub(lambda found: f"Trainer({found[2]}={_literal(found[3])})", text)
    text = UNTIL.sub(lambda found: f'until=Until("{found[1]}", {ENTRY.sub(_argument, found[2])})', text)
    return CONSTANT.sub(lambda found: CONSTANTS[found[1]], OPTION.sub("", text))


def _argument(entry: re.Match[str]) -> str:
    return f"{entry[1]}={_literal(entry[2])}"


def _literal(value: str) -> str:
    """A value of the command line as an argument in Python; `CONSTANT` finds constants.

    >>> [_literal(value) for value in ("1e-3", "bf16-mixed", "[0,1]", "...", "null")]
    ['1e-3', '"bf16-mixed"', '[0,1]', '...', 'null']
    """
    return value if value in CONSTANTS or re.fullmatch(r"\.\.\.|\[.*\]|[-+]?[\d.]+(e[-+]?\d+)?", value) else f'"{value}"'


def unknown(what: str, given: object, options: Iterable[object], *, owner: str = "") -> UserError:
    """The error for a name that is not among `options`, with the closest match first.

    Args:
        what: kind of thing that is named, such as `layer`.
        given: the name.
        options: the names that there are.
        owner: what has the options, such as a class; empty where that is clear.

    >>> print(unknown("layer", "layr4", ["stem", "layer4"]))
    there is no layer 'layr4': did you mean 'layer4'? There are: stem, layer4
    >>> print(unknown("field", 7, ["epoch", "step"], owner="Stage"))
    Stage has no field 7: give one of epoch, step
    >>> print(unknown("argument", "width", [], owner="alexnet"))
    alexnet has no arguments: leave out 'width'
    """
    names, subject = [str(option) for option in options], f"{owner} has" if owner else "there is"
    if not names:
        return UserError(f"{subject if owner else 'there are'} no {what}s: leave out {given!r}")
    return UserError(f"{subject} no {what} {given!r}: {_proposal(given, names)}")


def invalid(option: str, value: object, options: Iterable[object]) -> UserError:
    """The error for a value that is not among those that an option or argument accepts, with the closest match first.

    >>> print(invalid("cache.pixels", "maybe", ["auto", "true", "false"]))
    cache.pixels=maybe is not valid: give one of auto, true, false
    """
    return UserError(f"{option}={value} is not valid: {_proposal(value, [str(option) for option in options])}")


def _proposal(given: object, names: Sequence[str]) -> str:
    """The closest of the names if there are any, then all.

    >>> _proposal("tpo", ["top"]), _proposal("low", ["top"])
    ("did you mean 'top'?", 'give top')
    """
    near = [repr(name) for name in nearest(given, names)]
    if not near:
        return f"give one of {shorten(names)}" if len(names) > 1 else f"give {names[0]}"
    meant = f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?"
    return f"{meant} There are: {shorten(names)}" if len(names) > 1 else meant


def nearest(given: object, names: Sequence[str]) -> list[str]:
    """The closest name, with up to two others that are almost as close unless one letter or two are wrong. Empty where no name is close.

    Of names that are equal up to a number, such as efficientnet_b0 and efficientnet_b1, only the closest one counts.

    >>> nearest("efficentnet", ["efficientnet_b0", "efficientnet_b1", "efficientnet_lite0", "squeezenet"])
    ['efficientnet_b0', 'efficientnet_lite0']
    >>> nearest("layr4", ["layer3", "layer4"])
    ['layer4']
    """
    if (best := closest(given, names)) is None:
        return []
    ratios = {name: SequenceMatcher(None, name, str(given)).ratio() for name in (best, *names)}
    if not 0.7 < ratios[best] < 0.9:
        return [best]
    stems: dict[str, str] = {}
    for name in sorted(ratios, key=lambda name: -ratios[name]):
        stems.setdefault(re.split(r"\d", name)[0], name)
    return [best, *(name for name in stems.values() if name != best and ratios[name] > max(0.7, ratios[best] - 0.1))][:3]


def closest_path(path: Path, accepts: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The file or folder beside a missing one whose name is most like it, of those that are accepted; `None` where none is similar."""
    try:
        beside = sorted(other.name for other in path.parent.iterdir() if accepts(other))
    except OSError:
        return None
    near = closest(path.name, beside, least=0.72)
    return path.parent / near if near else None


def closest(given: object, names: Sequence[str], *, least: float = 0.5) -> str | None:
    """The name that is most like the given one; `None` where none is.

    Args:
        given: the name.
        names: those that there are.
        least: the lowest similarity, in [0, 1], as of `SequenceMatcher.ratio`.
    """
    if (other := SYNONYMS.get(str(given))) in names:
        return other
    near = sorted(get_close_matches(str(given), names, n=9, cutoff=least), key=partial(_distance, str(given), list(names)))
    plain = {_plain(name): name for name in names}
    return plain.get(_plain(str(given))) or (near[0] if near else None)


def _distance(given: str, names: list[str], name: str) -> tuple[float, ...]:
    """Of names as close by their letters: the one with the longest common beginning, then with the nearest number, then the first."""
    begin = len([*takewhile(lambda pair: pair[0] == pair[1], zip(name, given, strict=False))])
    numbers = [int(found[0]) for text in (name, given) if (found := re.search(r"\d{1,9}$", text))]
    apart = abs(numbers[0] - numbers[1]) if len(numbers) == 2 else 0
    return -SequenceMatcher(None, name, given).ratio(), -begin, apart, names.index(name)


def _plain(name: str) -> str:
    """A name without the differences between `ResNet-50` and `resnet50`."""
    return name.casefold().replace("-", "").replace("_", "")


def in_quotes(value: object) -> str:
    """The end of an error for a value that should be a number: says so where it is one, written as a text.

    >>> in_quotes("32"), in_quotes("many"), in_quotes(32)
    (" ('32' is a text: give 32 without quotes)", '', '')
    """
    try:
        number = isinstance(value, str) and isfinite(float(value))
    except ValueError:
        return ""
    return f" ({value!r} is a text: give {value} without quotes)" if number else ""


def shorten(items: Iterable[object], most: int = 12) -> str:
    """The first `most` items, comma separated, and the number of all items if there are more.

    >>> shorten("abcd", most=2)
    'a, b, ... (4 in all)'
    """
    texts = [str(item) for item in items]
    rest = f", ... ({len(texts)} in all)" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def one_line(error: BaseException) -> str:
    """The text of an error on one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
