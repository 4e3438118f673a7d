"""Choose among backbones by cross-validated heads on a few training images: successive halving, and the faster of equally good ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, log2, sqrt

from torch import Tensor

from ftlit.errors import UserError

FIRST, LAST = 200, 2000  # training images of the first and of the last round
FINALISTS = 2  # candidates of the last round


@dataclass(frozen=True)
class MeasuredBackbone:
    """What a backbone is judged by.

    Args:
        correct: whether each of M images is classified correctly by a head that was fitted without it (M,); the same images in the same
            order for all backbones.
        images_per_second: speed of the backbone.
        bytes: size of its weights.
    """

    correct: Tensor = field(repr=False)
    images_per_second: float
    bytes: int

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly."""
        return float(self.correct.double().mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy."""
        return sqrt(self.accuracy * (1 - self.accuracy) / len(self.correct))

    def is_within_one_error(self, best: "MeasuredBackbone") -> bool:
        """Whether it is at most one standard error of the difference less accurate than `best`, on the same images.

        The difference is that of paired results, so its error is far smaller than that of either accuracy (the one-standard-error rule of
        Breiman et al. 1984, section 3.4.3, for paired samples).
        """
        difference = best.correct.double() - self.correct.double()
        return float(difference.mean()) <= float(difference.std(correction=0)) / sqrt(len(difference))


@dataclass(frozen=True)
class BackboneChoice:
    """A choice among backbones.

    Args:
        chosen: its name.
        most_accurate: the name of the most accurate one among those of the last round.
        measured: name -> the measurement of its last round, in the order in which the names were given.
        images: name -> number of training images of that round.
    """

    chosen: str
    most_accurate: str
    measured: dict[str, MeasuredBackbone]
    images: dict[str, int]


def round_sizes(candidates: int, images: int) -> list[int]:
    """Training images of each round, a geometric sequence from `FIRST` to `LAST`. There are enough rounds that halving leaves `FINALISTS`.

    Args:
        candidates: number of them.
        images: number of training images, at which the sequence ends.

    >>> round_sizes(2, 5000), round_sizes(4, 5000), round_sizes(7, 5000), round_sizes(7, 500)
    ([2000], [200, 2000], [200, 632, 2000], [200, 500])
    """
    halvings = max(0, ceil(log2(candidates / FINALISTS)))
    sizes = [round(FIRST * (LAST / FIRST) ** (number / halvings)) for number in range(halvings)]
    return sorted({min(size, images) for size in (*sizes, LAST)})


def choose_backbone(names: Sequence[str], measure: Callable[[str, int], MeasuredBackbone], images: int) -> BackboneChoice:
    """Choose by successive halving (Jamieson and Talwalkar 2016): all are measured on a few images, the better half on more, and so on.

    In the last round the fastest is chosen of those that are within one standard error of the most accurate one.

    Args:
        names: of the candidates.
        measure: name and number of training images -> measurement.
        images: how many training images there are; no more are asked for.

    Raises:
        UserError: there is no candidate.
    """
    if not names:
        raise UserError("names is empty: give the name of at least one backbone")
    measured: dict[str, MeasuredBackbone] = {}
    asked: dict[str, int] = {}
    ranked = list(dict.fromkeys(names))
    for number, size in enumerate(round_sizes(len(ranked), images)):
        left = ranked if number == 0 else ranked[: max(FINALISTS, ceil(len(ranked) / 2))]
        measured |= {name: measure(name, size) for name in left}
        asked |= dict.fromkeys(left, size)
        ranked = sorted(left, key=lambda name: (-measured[name].accuracy, -measured[name].images_per_second))
    best = ranked[0]
    equal = [name for name in ranked if measured[name].is_within_one_error(measured[best])]
    chosen = max(equal, key=lambda name: measured[name].images_per_second)
    return BackboneChoice(chosen, best, measured, asked)
