"""Size and similarity, measured on features -> a scenario, with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftlit.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """A number that a decision hangs on, what it counts, and where it comes from."""

    value: float
    of: str
    source: str


THRESHOLDS = {
    "few": Threshold(30, "training images a class", "below, training all gained .010 at most in benchmarks/advice.py"),
    "steps": Threshold(100, "optimizer steps that training all would take", "below, it gained .013 at most in benchmarks/advice.py"),
    "errors": Threshold(
        0.02,
        "errors of the head alone, as a part of those of the commonest class for all",
        "training all took away half of them at most in benchmarks/advice.py: .01 are left to gain",
    ),
    "cut": Threshold(40, "measured images that choose the cut under a head", "below, lower ones lost by benchmarks/cuts.py"),
}


@dataclass(frozen=True)
class Depth:
    """What the features at a cut tell of the classes: accuracy of a linear probe on held-out training images, and LogME."""

    cut: str
    accuracy: float
    logme: float


@dataclass(frozen=True)
class Measurements:
    """What a decision rests on.

    Args:
        images: that train.
        classes: how many.
        depths: of every cut, the lowest first; at least one.
        measured: training images that the depths rest on.
        commonest: part of these that is of the commonest class.
        steps: optimizer steps that the epochs of `scenario=large_similar` would make of them.
        noun: what the images are called.
    """

    images: int
    classes: int
    depths: Sequence[Depth]
    measured: int
    commonest: float
    steps: float
    noun: str = "images"

    def __post_init__(self) -> None:
        if not self.depths:
            raise UserError("advice needs the accuracy of at least one cut")


@dataclass(frozen=True)
class Advice:
    """What to do: option of the group `scenario`, name of the cut; why, in two sentences; whether there is anything to transfer, whether a
    head can be solved here, and whether images can be held out, which choose its L2 penalty.
    """

    scenario: str
    cut: str
    reason: str
    pretrained: bool = True
    solvable: bool = True
    holds_out: bool = True


def advise(measured: Measurements, *, droppable: bool = True, asked: str = "") -> Advice:
    """The decision of Karpathy's CS231n notes on transfer learning (2016), with both of its questions measured.

    Many images where a class has `THRESHOLDS["few"]` on average, and where they make `THRESHOLDS["steps"]` steps; all layers train on them
    unless the head alone leaves no more than `THRESHOLDS["errors"]` to gain and nothing was given that asked for it. Unlike those of the
    pretraining where a cut below the top tells the classes apart better: the upper layers belong to the old task (Yosinski et al. 2014,
    section 4). Where all train better is more accurate: only rates hang on it. Where the head alone does, whose upper layers would be
    dropped, it is as accurate and best by LogME, on `THRESHOLDS["cut"]` images: accuracy alone, the best of many cuts by a few images, is
    luck. Not `droppable`: these have to stay.
    """
    top, average = measured.depths[-1], measured.images / measured.classes
    few, steps = THRESHOLDS["few"].value, THRESHOLDS["steps"].value
    alone = _under_a_head(measured) if droppable else top
    errors = 1 - alone.accuracy
    gains = errors > THRESHOLDS["errors"].value * (1 - measured.commonest)
    large = average >= few and measured.steps >= steps and (gains or bool(asked))
    best = _most_accurate(measured) if large else alone
    scenario = f"{'large' if large else 'small'}_{'similar' if best is top else 'different'}"
    known, given = f"{average:.3g} training {measured.noun} a class", f"{measured.steps:,.0f} steps of full training by default"
    if average < few:
        size = f"{known} are few (many: from {few:g} on): the head alone"
    elif measured.steps < steps:
        size = f"{known} are many, but their {given} are few (many: from {steps:g} on): the head alone"
    elif not large:
        whole = "large_similar" if _most_accurate(measured) is top else "large_different"
        size = f"{known} and {given} are many, but the head alone errs on {errors:.1%}: little to gain (scenario={whole} trains all layers)"
    else:
        size = f"{known} and {given} are many: all layers train" + ("" if gains else f", as {asked} was given")
    best_told, top_told = (
        f"{depth.cut} ({depth.accuracy:.3f} of held-out {measured.noun}, LogME {depth.logme:.2f})" for depth in (best, top)
    )
    better = "better than" if best.accuracy > top.accuracy else "as well as, and by LogME better than,"
    if best is not top:
        like = f"{best_told} tells the classes apart {better} the top, {top_told}: {measured.noun} unlike those of the pretraining"
    elif large:
        like = f"No lower cut tells the classes apart better than the top, {top_told}: {measured.noun} like those of the pretraining"
    elif droppable and measured.measured < THRESHOLDS["cut"].value:
        enough = f"{measured.measured} {measured.noun} cannot choose a lower cut (from {THRESHOLDS['cut'].value:g} on they can)"
        like = f"{enough}: the head stands on the top, {top_told}"
    elif droppable:
        like = f"No lower cut is better than the top by accuracy and LogME, {top_told}: {measured.noun} like those of the pretraining"
    else:
        like = f"No layer can be dropped here: the head stands on the top, {top_told}"
    return Advice(scenario, top.cut if large else best.cut, f"{size}. {like}.")


def _most_accurate(measured: Measurements) -> Depth:
    return max(reversed(measured.depths), key=lambda depth: depth.accuracy)


def _under_a_head(measured: Measurements) -> Depth:
    """The cut for a head that alone trains."""
    top = measured.depths[-1]
    if measured.measured < THRESHOLDS["cut"].value:
        return top
    as_accurate = [depth for depth in measured.depths if depth.accuracy >= top.accuracy]
    return max(reversed(as_accurate), key=lambda depth: depth.logme)
