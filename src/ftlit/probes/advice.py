"""Decide on a scenario: the size of the data and its similarity to the pretraining data, both measured, with the reasons as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ftlit.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """A number that a decision depends on, its unit, and its source."""

    value: float
    of: str
    source: str


THRESHOLDS = {
    "few": Threshold(
        30,
        "training images per class",
        "measured by benchmarks/advice.py: with fewer images, training all layers gained at most .010 accuracy over a probe",
    ),
    "steps": Threshold(
        100,
        "optimizer steps of full training",
        "measured by benchmarks/advice.py: with fewer steps, training all layers gained at most .013 accuracy over a probe",
    ),
    "errors": Threshold(
        0.02,
        "errors of a linear probe, relative to the errors of always predicting the majority class",
        "if the probe makes fewer errors, fine-tuning can gain at most .01 accuracy: it never removed more than half of the "
        "errors (benchmarks/advice.py)",
    ),
    "cut": Threshold(
        40,
        "images used to choose the cut at which the head is attached",
        "with fewer images, lower cuts did worse than the top layer (benchmarks/cuts.py)",
    ),
}


@dataclass(frozen=True)
class Depth:
    """How well the features at a cut separate the classes: accuracy of a linear probe on held-out training images, and LogME."""

    cut: str
    accuracy: float
    logme: float


@dataclass(frozen=True)
class Measurements:
    """The input of a decision.

    Args:
        images: number of training images.
        classes: number of classes.
        depths: one per cut, the lowest first; at least one.
        measured_images: number of training images that the depths are measured on.
        majority_share: share of the majority class among these.
        steps: optimizer steps that `scenario=large_similar` would take.
        noun: what the images are called.
    """

    images: int
    classes: int
    depths: Sequence[Depth]
    measured_images: int
    majority_share: float
    steps: float
    noun: str = "images"

    def __post_init__(self) -> None:
        if not self.depths:
            raise UserError("depths is empty: give depths=[Depth(cut, accuracy, logme), ...], with at least one cut")


class SizeReason(StrEnum):
    """Why all layers train (`MANY_IMAGES`, `REQUESTED`, `RANDOM_WEIGHTS`, `NOT_MEASURABLE`), or the head only (the others)."""

    FEW_IMAGES = "few_images"
    FEW_STEPS = "few_steps"
    LITTLE_TO_GAIN = "little_to_gain"
    ONE_PER_CLASS = "one_image_per_class"
    MANY_IMAGES = "many_images"
    REQUESTED = "requested"
    RANDOM_WEIGHTS = "random_weights"
    NOT_MEASURABLE = "not_measurable"


class CutReason(StrEnum):
    """Why the images are like those of the pretraining (`TOP_...`), or unlike them (`LOWER_...`); or why the head stays on the top."""

    TOP_MOST_ACCURATE = "top_most_accurate"
    TOP_BY_ACCURACY_AND_LOGME = "top_by_accuracy_and_logme"
    LOWER_MORE_ACCURATE = "lower_more_accurate"
    LOWER_BY_LOGME = "lower_by_logme"
    TOO_FEW_TO_CHOOSE = "too_few_to_choose"
    NOT_DROPPABLE = "not_droppable"


@dataclass(frozen=True)
class DecisionNumbers:
    """The numbers that decided.

    Args:
        images_per_class: mean over the classes.
        steps: optimizer steps of full training.
        probe_error: error rate of the linear probe at the cut for a head, on held-out images.
        measured_images: number of images that the depths are measured on.
        best: the depth that decided on the similarity.
        most_accurate: the depth of the highest accuracy.
        top: the highest cut.
        full_scenario: the scenario that trains all layers.
    """

    images_per_class: float
    steps: float
    probe_error: float
    measured_images: int
    best: Depth
    most_accurate: Depth
    top: Depth
    full_scenario: str


@dataclass(frozen=True)
class Reason:
    """Why a scenario is advised.

    Args:
        size: decides between `large_...` and `small_...`.
        cut: decides between `..._similar` and `..._different`; `None` where nothing was measured.
        numbers: `None` where nothing was measured.
        requested: the settings that ask for full training, for `SizeReason.REQUESTED`.
        misfit: an advised scenario that does not have a setting that the user gave, so that `large_similar` replaces it; empty: none.
    """

    size: SizeReason
    cut: CutReason | None = None
    numbers: DecisionNumbers | None = None
    requested: str = ""
    misfit: str = ""


@dataclass(frozen=True)
class Advice:
    """A scenario and what follows from it.

    Args:
        scenario: option of the config group `scenario`.
        cut: name of the cut.
        reason: `None` where the advice is read from a file.
        pretrained: whether there are pretrained layers to transfer.
        fits_probe_head: whether a linear probe can be fitted as the head.
        holds_out_images: whether images can be held out to choose the L2 penalty of the head.
    """

    scenario: str
    cut: str
    reason: Reason | None = None
    pretrained: bool = True
    fits_probe_head: bool = True
    holds_out_images: bool = True


def advise(measured: Measurements, *, droppable: bool = True, requested: str = "") -> Advice:
    """The decision of Karpathy's CS231n notes on transfer learning (2016), with both of its questions measured.

    Large: a class has `THRESHOLDS["few"]` images on average, and full training takes `THRESHOLDS["steps"]` steps. Then all layers train,
    unless a linear probe leaves no more than `THRESHOLDS["errors"]` to gain and nothing that the user gave asks for full training.

    Different: a cut below the top separates the classes better, since upper layers are specific to the old task (Yosinski et al. 2014,
    section 4). For full training, where only learning rates depend on it, better means more accurate. For a head on frozen layers, where
    the upper layers would be dropped, it means as accurate as the top and best by LogME, on `THRESHOLDS["cut"]` images at least: the most
    accurate of many cuts on a few images is chance.

    Args:
        measured: the measurements.
        droppable: whether the upper layers can be dropped.
        requested: the settings by which the user asks for full training, as text; empty: none.
    """
    top = measured.depths[-1]
    under_head = _best_under_head(measured) if droppable else top
    size = _size_reason(measured, 1 - under_head.accuracy, requested)
    large = size in (SizeReason.MANY_IMAGES, SizeReason.REQUESTED)
    best = _most_accurate(measured) if large else under_head
    numbers = DecisionNumbers(
        images_per_class=measured.images / measured.classes,
        steps=measured.steps,
        probe_error=1 - under_head.accuracy,
        measured_images=measured.measured_images,
        best=best,
        most_accurate=_most_accurate(measured),
        top=top,
        full_scenario="large_similar" if _most_accurate(measured) is top else "large_different",
    )
    cut = _cut_reason(numbers, large=large, droppable=droppable)
    reason = Reason(size, cut, numbers, requested if size is SizeReason.REQUESTED else "")
    scenario = f"{'large' if large else 'small'}_{'similar' if best is top else 'different'}"
    return Advice(scenario, top.cut if large else best.cut, reason)


def _size_reason(measured: Measurements, probe_error: float, requested: str) -> SizeReason:
    if measured.images / measured.classes < THRESHOLDS["few"].value:
        return SizeReason.FEW_IMAGES
    if measured.steps < THRESHOLDS["steps"].value:
        return SizeReason.FEW_STEPS
    if probe_error > THRESHOLDS["errors"].value * (1 - measured.majority_share):
        return SizeReason.MANY_IMAGES
    return SizeReason.REQUESTED if requested else SizeReason.LITTLE_TO_GAIN


def _cut_reason(numbers: DecisionNumbers, *, large: bool, droppable: bool) -> CutReason:
    if numbers.best is not numbers.top:
        return CutReason.LOWER_MORE_ACCURATE if numbers.best.accuracy > numbers.top.accuracy else CutReason.LOWER_BY_LOGME
    if large:
        return CutReason.TOP_MOST_ACCURATE
    if not droppable:
        return CutReason.NOT_DROPPABLE
    return CutReason.TOO_FEW_TO_CHOOSE if numbers.measured_images < THRESHOLDS["cut"].value else CutReason.TOP_BY_ACCURACY_AND_LOGME


def _most_accurate(measured: Measurements) -> Depth:
    """The depth of the highest accuracy; of equals the highest cut."""
    return max(reversed(measured.depths), key=lambda depth: depth.accuracy)


def _best_under_head(measured: Measurements) -> Depth:
    """The depth for a head on frozen layers: of those as accurate as the top the best by LogME."""
    top = measured.depths[-1]
    if measured.measured_images < THRESHOLDS["cut"].value:
        return top
    as_accurate = [depth for depth in measured.depths if depth.accuracy >= top.accuracy]
    return max(reversed(as_accurate), key=lambda depth: depth.logme)
