"""Examples of several splits in one, each read by the function of its own split."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from ftlit.data.dataset import Examples
from ftlit.data.file_paths import FilePaths, are_files
from ftlit.identity.code_identity import versioned


@versioned("read_from_several", 1)
class ReadFromSeveral:
    """Number -> image or text. The numbers of each data set begin where those of the one before end.

    Args:
        loads: of each data set: number in it -> image or text.
        begins: the first number of each data set, rising from 0.
    """

    def __init__(self, loads: Sequence[Callable[[Any], Any]], begins: Sequence[int]) -> None:
        self.loads, self.begins = list(loads), list(begins)

    def __call__(self, number: int) -> Any:
        """The image or text."""
        own = bisect_right(self.begins, number) - 1
        return self.loads[own](number - self.begins[own])


def gathered(parts: Sequence[Examples], places: Sequence[tuple[int, int]]) -> Examples:
    """The examples at these places, in this order.

    Sources that are numbers are numbers in a data set that `load` holds, so examples of several such data sets get other numbers.

    Args:
        parts: of one data source.
        places: number of a part, and place in it.
    """
    used = [parts[number] for number in sorted({number for number, _ in places})] or [parts[0]]
    labels = [parts[number].labels[place] for number, place in places]
    sources: Any = [parts[number].sources[place] for number, place in places]
    contents, groups, load = None, None, used[0].load
    if all(part.contents is part.sources for part in used):
        contents = sources = FilePaths.of((path.parent, path.name) for path in sources) if are_files(sources) else sources
    elif all(part.contents is not None for part in used):
        contents = [parts[number].contents[place] for number, place in places]  # type: ignore[index]
    if any(part.groups is not None for part in used):
        groups = [own[place] if (own := parts[number].groups) else None for number, place in places]
    loads = list({id(part.load): part.load for part in used}.values())
    if len(loads) > 1 and all(isinstance(source, int) for source in sources):
        lengths = [1 + max((number for part in used if part.load is own for number in part.sources), default=-1) for own in loads]
        begins = {id(own): sum(lengths[:i]) for i, own in enumerate(loads)}
        sources = [begins[id(parts[number].load)] + source for (number, _), source in zip(places, sources, strict=True)]
        load = ReadFromSeveral(loads, list(begins.values()))
    return Examples(sources, labels, load, contents, groups)
