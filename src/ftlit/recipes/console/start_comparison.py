"""The accuracy of a run beside that of the run of `init_from`, on the same test images."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftlit.formatting import count
from ftlit.intervals import paired_difference
from ftlit.report.start_rows import KNOWN, RUN, TEST, start_rows


@dataclass(frozen=True)
class StartComparison:
    """Which of the same test images two runs predict correctly.

    Args:
        name: of the earlier run.
        before: whether the earlier run is right, for each image that it has never read for training.
        now: whether the new run is, on the same images.
        known: whether the earlier run has the class of the image.
        left_out: number of test images that the earlier run was trained or chosen on.
        noun: for the examples.
    """

    name: str
    before: Sequence[bool]
    now: Sequence[bool]
    known: Sequence[bool]
    left_out: int
    noun: str = "images"

    def record(self) -> dict[str, float | str]:
        """Entries of `result.json`, see `ftlit.report.start_rows`: of all images, and of those of known classes where there are others."""
        known = [pair for pair, is_known in zip(zip(self.before, self.now, strict=True), self.known, strict=True) if is_known]
        of_known = _compared(KNOWN, known) if 0 < len(known) < len(self.known) else {}
        return {RUN: self.name, **_compared(TEST, list(zip(self.before, self.now, strict=True))), **of_known}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, accuracy and 95 % interval, in words: of the earlier run, and the differences."""
        return start_rows(self.record())

    def describe(self) -> str:
        """What the rows are about, in words."""
        text = f"{self.name} -> this run: accuracy on the same {count(len(self.before), 'test image')}"
        text = text.replace("image", self.noun.removesuffix("s"))
        text += f" {_share(self.before):.4f} -> {_share(self.now):.4f}"
        if self.left_out:
            text += f"; {self.left_out} others were in train or val of {self.name} and do not count"
        if number := self.known.count(True):
            before, now = ([right for right, known in zip(own, self.known, strict=True) if known] for own in (self.before, self.now))
            text += f"; on the {number} of known classes {_share(before):.4f} -> {_share(now):.4f}" if number < len(self.known) else ""
        return text


def _compared(prefix: str, pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """The accuracy of the earlier run, the paired difference with its 95 % interval, and the number of images."""
    before, now = zip(*pairs, strict=True)
    names = ("difference", "difference_low", "difference_high")
    values = {"accuracy": _share(before), **dict(zip(names, paired_difference(before, now), strict=True)), "images": len(pairs)}
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(1, len(right))
