"""The accuracy of a run beside that of the run of `init_from`, on the same test images."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftlit.formatting import count
from ftlit.intervals import accuracy_interval, paired_interval


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

    @property
    def difference(self) -> tuple[float, float, float]:
        """Accuracy of the new run minus that of the earlier one, and its 95 % interval."""
        pairs = list(zip(self.before, self.now, strict=True))
        better, worse = pairs.count((False, True)), pairs.count((True, False))
        return (better - worse) / len(pairs), *paired_interval(better, worse, len(pairs))

    def record(self) -> dict[str, float]:
        """Entries of `result.json`."""
        difference, low, high = self.difference
        values = {"accuracy": _share(self.before), "difference": difference, "difference_low": low, "difference_high": high}
        return {f"init_from/test/{name}": value for name, value in {**values, "images": len(self.before)}.items()}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, accuracy and 95 % interval, in words: of the earlier run, and the difference."""
        difference, low, high = self.difference
        bounds = "{:.3f} to {:.3f}".format(*accuracy_interval(_share(self.before), len(self.before)))
        return [
            (f"test: {self.name}", f"{_share(self.before):.4f}", bounds),
            ("new - old", f"{difference:+.4f}", f"{low:+.3f} to {high:+.3f}"),
        ]

    def describe(self) -> str:
        """What the rows are about, in words."""
        text = f"{self.name} -> this run: accuracy on the same {count(len(self.before), 'test image')}"
        text = text.replace("image", self.noun.removesuffix("s"))
        text += f" {_share(self.before):.4f} -> {_share(self.now):.4f}"
        if self.left_out:
            text += f"; {self.left_out} others were in train or val of {self.name} and do not count"
        if number := self.known.count(True):
            before, now = ([right for right, known in zip(own, self.known, strict=True) if known] for own in (self.before, self.now))
            text += f"; on the {number} of its classes {_share(before):.4f} -> {_share(now):.4f}" if number < len(self.known) else ""
        return text


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(1, len(right))
