"""Word the advice on a scenario: one or two sentences for the console and for advice.json."""

from collections.abc import Mapping

from ftlit.formatting import count
from ftlit.probes.advice import THRESHOLDS, CutReason, DecisionNumbers, Depth, Reason, SizeReason


def describe(reason: Reason, noun: str, counts: Mapping[str, int] | None = None) -> str:
    """The reason of an advice in sentences.

    Args:
        reason: of the advice.
        noun: what the images are called.
        counts: training images of each class; `None`: not known.
    """
    sentences = [_size(reason, noun, counts or {})]
    if reason.cut and reason.numbers:
        sentences.append(_cut(reason.cut, reason.numbers, noun))
    if reason.misfit:
        sentences.append(
            f"scenario={reason.misfit} would be the choice, but it does not accept one of the given settings: "
            "scenario=large_similar is used instead"
        )
    return " ".join(f"{sentence}." for sentence in sentences)


def _size(reason: Reason, noun: str, counts: Mapping[str, int]) -> str:
    if reason.size is SizeReason.RANDOM_WEIGHTS:
        return "The weights are random, so there is nothing to transfer: all layers train"
    if reason.size is SizeReason.NOT_MEASURABLE:
        return (
            "Linear probes cannot be fitted on these data, so all layers train "
            f"(probes need {noun} of every class, one label for each, and a data module without custom batches)"
        )
    if reason.size is SizeReason.ONE_PER_CLASS:
        one = noun.removesuffix("s")
        return (
            f"There is only one training {one} per class: only the head trains. No {one} can be held out to compare cuts or to "
            "choose the L2 penalty of the head"
        )
    assert reason.numbers is not None
    return _measured_size(reason, reason.numbers, noun, counts)


def _measured_size(reason: Reason, numbers: DecisionNumbers, noun: str, counts: Mapping[str, int]) -> str:
    size = reason.size
    images = f"{numbers.images_per_class:.3g} training {noun} per class{_smallest(counts)}"
    steps = count(round(numbers.steps), "optimizer step")
    if size is SizeReason.FEW_IMAGES:
        return f"{images} are few (fewer than {THRESHOLDS['few'].value:g}), so only the head trains"
    if size is SizeReason.FEW_STEPS:
        least = f"{THRESHOLDS['steps'].value:g}"
        return (
            f"{images} are enough to train all layers, but {steps} are too few (at least {least} are needed), so only the head trains; "
            "for more steps, give a higher trainer.max_epochs"
        )
    many = f"{images} and {steps} are many"
    if size is SizeReason.LITTLE_TO_GAIN:
        return (
            f"{many}, but a linear probe already reaches an accuracy of {1 - numbers.probe_error:.1%}, so fine-tuning is unlikely to help; "
            f"to train all layers anyway, give scenario={numbers.full_scenario}"
        )
    return f"{many}: all layers train" + (f", because of {reason.requested}" if size is SizeReason.REQUESTED else "")


def _smallest(counts: Mapping[str, int]) -> str:
    """That the number of images is an average, and the smallest class, where the average hides a class of few images."""
    name = min(counts, key=counts.__getitem__, default=None)
    if name is None or len(set(counts.values())) < 2 or counts[name] >= THRESHOLDS["few"].value:
        return ""
    return f" on average (the smallest class, {name}, has {counts[name]:,})"


def _cut(reason: CutReason, numbers: DecisionNumbers, noun: str) -> str:
    top, best = _depth(numbers.top, noun), _depth(numbers.best, noun)
    similar, different = f"the {noun} are similar to those of the pretraining", f"the {noun} differ from those of the pretraining"
    minimum = f"{THRESHOLDS['cut'].value:g}"
    return {
        CutReason.LOWER_MORE_ACCURATE: f"{best} separates the classes better than the top layer, {top}: {different}",
        CutReason.LOWER_BY_LOGME: (
            f"{best} is as accurate as the top layer, {top}, and has a better transferability score (LogME): {different}"
        ),
        CutReason.TOP_MOST_ACCURATE: f"No lower layer separates the classes better than the top layer, {top}: {similar}",
        CutReason.TOP_BY_ACCURACY_AND_LOGME: _top_by_both(numbers, noun, similar),
        CutReason.TOO_FEW_TO_CHOOSE: (
            f"{numbers.measured_images} {noun} are too few to compare layers (minimum {minimum}), so the head is on the last layer, {top}"
        ),
        CutReason.NOT_DROPPABLE: f"The layers of this backbone cannot be dropped, so the head reads the top layer, {top}",
    }[reason]


def _top_by_both(numbers: DecisionNumbers, noun: str, similar: str) -> str:
    top, other = numbers.top, numbers.most_accurate
    if other.accuracy <= top.accuracy:
        return f"No lower layer separates the classes better than the top layer, {_depth(top, noun)}: {similar}"
    layers = f"{_depth(other, noun)} and the top layer {_depth(top, noun)}"
    return f"No layer is dropped, because no lower layer has both a higher accuracy and a higher LogME than the top layer: {layers}"


def _depth(depth: Depth, noun: str) -> str:
    return f"{depth.cut} (accuracy {depth.accuracy:.3f} on held-out {noun}, LogME {depth.logme:.2f})"
