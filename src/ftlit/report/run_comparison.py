"""Compare two runs on the test images that both have: accuracies, macro F1, and the paired difference with its interval."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ftlit.data.splitting.stored_split import FILE, StoredSplit, read_split
from ftlit.errors import UserError
from ftlit.formatting import shell_word, shown
from ftlit.intervals import paired_difference
from ftlit.printing import plain, show
from ftlit.report.contents import Predictions, RunData
from ftlit.report.load import read
from ftlit.report.start_rows import accuracy_row, difference_row

TestImage = tuple[str, str]  # the hash of its content, or its name, and the name of its class
MIN_COMMON = 20  # test images of runs with different test sets: the interval of a difference on fewer is wider than most differences


@dataclass(frozen=True)
class RunComparison:
    """What two runs predict for the same test images.

    Args:
        names: of the run and of the other one.
        labels: the class of each image.
        predicted: the class that the run predicts for it.
        other_predicted: the class that the other run predicts.
        noun: for the examples.
        scope: which test images are compared, where these are not all that the runs have; else empty.
    """

    names: tuple[str, str]
    labels: Sequence[str]
    predicted: Sequence[str]
    other_predicted: Sequence[str]
    noun: str = "images"
    scope: str = ""

    def rows(self) -> list[tuple[str, ...]]:
        """Name, accuracy, its 95 % interval and macro F1 of both runs, and their difference."""
        number, right = len(self.labels), self._right()
        f1 = [macro_f1(self.labels, predicted) for predicted in (self.predicted, self.other_predicted)]
        accuracies = [accuracy_row(name, sum(own) / number, number) for name, own in zip(self.names, right, strict=True)]
        difference = difference_row("difference", *paired_difference(right[1], right[0]))
        return [(*accuracies[0], f"{f1[0]:.4f}"), (*accuracies[1], f"{f1[1]:.4f}"), (*difference, f"{f1[0] - f1[1]:+.4f}")]

    def describe(self) -> str:
        """What the difference says, in words."""
        run, other = self.names
        right, other_right = self._right()
        pairs = list(zip(right, other_right, strict=True))
        only, only_other = pairs.count((True, False)), pairs.count((False, True))
        _, low, high = paired_difference(other_right, right)
        verdict = (
            "contains 0: the difference is not established" if low <= 0 <= high else "does not contain 0: the difference is established"
        )
        return (
            f"Difference: accuracy of {run} minus that of {other}, on the same {len(pairs):,} test {self.noun}. Only {run} is right on "
            f"{only:,} of them, only {other} on {only_other:,}. The 95 % interval of the difference {verdict}. It holds for other test "
            f"{self.noun} of the same kind and for these two networks (Agresti and Min 2005). To compare settings, whatever the seed, run "
            "a sweep with several seeds."
        )

    def _right(self) -> tuple[list[bool], list[bool]]:
        """For each image, whether the run is right, and whether the other one is."""
        run, other = (
            [label == found for label, found in zip(self.labels, own, strict=True)] for own in (self.predicted, self.other_predicted)
        )
        return run, other


def macro_f1(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """The mean F1 of the classes, as in the results of a run: without classes that are neither present nor predicted."""
    hits = Counter(label for label, found in zip(labels, predicted, strict=True) if label == found)
    both = Counter(labels) + Counter(predicted)
    return fmean(2 * hits[name] / number for name, number in both.items())


@dataclass(frozen=True)
class _Tested:
    """The test images of a run.

    Args:
        run: the data of its report.
        answers: test image -> the predicted classes; copies of an image are one image with several answers.
        split: the split of the run, where images are recognised by their content.
    """

    run: RunData
    answers: dict[TestImage, list[str]]
    split: StoredSplit | None

    @property
    def name(self) -> str:
        """The folder of the run."""
        return shown(self.run.folder)

    @property
    def number(self) -> int:
        """The number of test images."""
        return sum(map(len, self.answers.values()))

    def fitted(self) -> set[str]:
        """The hashes of the images that the run had in train or val."""
        return {image for name in ("train", "val") for image, *_ in self.split.images[name]} if self.split else set()

    def holds(self, images: Iterable[TestImage]) -> int:
        """How many of these images the data of the run hold, in any split."""
        if self.split is None:
            return 0
        names = self.split.class_names
        own = {(image, names[label]) for entries in self.split.images.values() for image, (label, *_), _ in entries}
        return len(own & set(images))


def print_run_comparison(folder: Path, other: Path) -> None:
    """Print the accuracy and macro F1 of a run, those of another one, and the paired difference.

    Args:
        folder: of the run.
        other: folder of the other run.

    Raises:
        UserError: see `compare_runs`.
    """
    compared = compare_runs(folder, other)
    table = Table("run", "test accuracy", "95 % interval", "macro F1")
    for row in compared.rows():
        table.add_row(*map(plain, row))
    show(Group(table, *map(Text, filter(None, (compared.scope, compared.describe())))))


def compare_runs(folder: Path, other: Path) -> RunComparison:
    """Compare two runs image by image on the test images that both have, whatever their order.

    Images that only one of the runs had in train or val are left out: its accuracy on them is too high.

    Raises:
        UserError: a run has no predictions on test images, or several labels per image; or too few images are in both test sets.
    """
    first, second = _both(folder, other)
    _check_known(first, second)
    once = first.fitted() ^ second.fitted()
    shared = {
        image: min(len(own), len(second.answers[image]))
        for image, own in first.answers.items()
        if image in second.answers and image[0] not in once
    }
    total, noun = sum(shared.values()), first.run.noun
    whole = total == first.number == second.number
    if total < MIN_COMMON and not whole:
        raise UserError(
            f"{first.name} ({first.number:,} test {noun}) and {second.name} ({second.number:,}) have {total or 'no'} test {noun} in "
            f"common that have the same label in both runs, but a comparison needs {MIN_COMMON}: {_advice(first, second)}"
        )
    labels = [label for (_, label), number in shared.items() for _ in range(number)]
    found = [[name for image, number in shared.items() for name in run.answers[image][:number]] for run in (first, second)]
    left = len({image for run in (first, second) for image, _ in run.answers} & once)
    scope = f"Compared on the {total:,} test {noun} that both runs have, of {first.number:,} and {second.number:,}" + (
        f", without {left:,} that only one of them had in train or val." if left else "."
    )
    return RunComparison((first.name, second.name), labels, found[0], found[1], noun, "" if whole else scope)


def _check_known(first: _Tested, second: _Tested) -> None:
    """Refuse other test images where they are recognised by their names: these may be numbers, which other images have too."""
    same = {image: len(own) for image, own in first.answers.items()} == {image: len(own) for image, own in second.answers.items()}
    if same or first.split:
        return
    lacking = next(run for run in (second, first) if _split(run.run, run.number) is None)
    has_split = (lacking.run.folder / FILE).is_file()
    why = f"{lacking.name} has tested only some of its images" if has_split else f"{lacking.name} has no {FILE}"
    words = f"ftlit train again={shell_word(lacking.name)} trainer.limit_test_batches=1.0"
    advice = f"train it again with all ({words})" if has_split else "give two runs with the same test set"
    raise UserError(
        f"{first.name} has {first.number:,} test {first.run.noun} and {second.name} {second.number:,}, and which of them are the same is "
        f"unknown, because {why}: {advice}"
    )


def _advice(first: _Tested, second: _Tested) -> str:
    """How to get two runs with the same test images."""
    for run, other in ((second, first), (first, second)):
        if run.holds(other.answers) >= min(MIN_COMMON, len(other.answers)):
            words = f"again={shell_word(run.name)} data.split_from={shell_word(other.name)}"
            return f"train {run.name} again with the split of {other.name} (ftlit train {words})"
    return f"train {second.name} again on the data of {first.name}, with data.split_from={shell_word(first.name)}"


def _both(folder: Path, other: Path) -> tuple[_Tested, _Tested]:
    """The test images of both runs, recognised by their content if both have stored it, or else by their names."""
    runs = [_read(folder), _read(other)]
    splits = [_split(run, len(predictions.items)) for run, predictions in runs]
    known = splits if all(splits) else [None, None]
    first, second = (_Tested(run, _answers(run, own, split), split) for (run, own), split in zip(runs, known, strict=True))
    return first, second


def _read(folder: Path) -> tuple[RunData, Predictions]:
    run = read(folder)
    if not (run.predictions and run.predictions.items):
        raise UserError(f"{shown(folder)} has no predictions on test images (report/test.csv): give a run that was tested")
    if run.about.get("multilabel"):
        raise UserError(f"{shown(folder)} has several labels per image: --against compares runs with one label per image")
    return run, run.predictions


def _split(run: RunData, tested: int) -> StoredSplit | None:
    """The split of a run, if it lists exactly the images that were tested: with trainer.limit_test_batches fewer were."""
    stored = read_split(run.folder) if (run.folder / FILE).is_file() else None
    return stored if stored and len(stored.images["test"]) == tested else None


def _answers(run: RunData, predictions: Predictions, split: StoredSplit | None) -> dict[TestImage, list[str]]:
    items = predictions.items if split is None else [image for image, *_ in split.images["test"]]
    found = defaultdict(list)
    for item, (label, *_), (predicted, *_) in zip(items, predictions.labels, predictions.predicted, strict=True):
        found[item, run.class_names[label]].append(run.class_names[predicted])
    return {image: sorted(names) for image, names in found.items()}
