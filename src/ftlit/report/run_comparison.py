"""Compare two runs on the same test images: both accuracies, and the paired difference with its interval."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ftlit.data.splitting.stored_split import FILE, read_split
from ftlit.errors import UserError
from ftlit.formatting import shown
from ftlit.intervals import paired_difference
from ftlit.printing import plain, show
from ftlit.report.contents import Predictions, RunData
from ftlit.report.load import read
from ftlit.report.start_rows import accuracy_row, difference_row

TestImage = tuple[str, tuple[str, ...]]  # the hash of its content, or its name, and the names of its classes


@dataclass(frozen=True)
class RunComparison:
    """Which of the same test images two runs predict correctly.

    Args:
        names: of the run and of the other one.
        right: for each image, whether the run is right.
        other_right: the same of the other run.
        noun: for the examples.
    """

    names: tuple[str, str]
    right: Sequence[bool]
    other_right: Sequence[bool]
    noun: str = "images"

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, accuracy and 95 % interval of both runs, and their difference."""
        number, found = len(self.right), zip(self.names, (self.right, self.other_right), strict=True)
        accuracies = [accuracy_row(name, sum(right) / number, number) for name, right in found]
        return [*accuracies, difference_row("difference", *paired_difference(self.other_right, self.right))]

    def describe(self) -> str:
        """What the difference says, in words."""
        run, other = self.names
        pairs = list(zip(self.right, self.other_right, strict=True))
        only, only_other = pairs.count((True, False)), pairs.count((False, True))
        _, low, high = paired_difference(self.other_right, self.right)
        verdict = (
            "contains 0: the difference is not established" if low <= 0 <= high else "does not contain 0: the difference is established"
        )
        return (
            f"Difference: accuracy of {run} minus that of {other}, on the same {len(pairs):,} test {self.noun}. Only {run} is right on "
            f"{only:,} of them, only {other} on {only_other:,}. The 95 % interval of the difference {verdict}. It holds for other test "
            f"{self.noun} of the same kind and for these two networks (Agresti and Min 2005). To compare settings, whatever the seed, run "
            "a sweep with several seeds."
        )


def print_run_comparison(folder: Path, other: Path) -> None:
    """Print the accuracy of a run, that of another one, and their paired difference.

    Args:
        folder: of the run.
        other: folder of the other run.

    Raises:
        UserError: see `compare_runs`.
    """
    compared = compare_runs(folder, other)
    table = Table("run", "test accuracy", "95 % interval")
    for row in compared.rows():
        table.add_row(*map(plain, row))
    show(Group(table, Text(compared.describe())))


def compare_runs(folder: Path, other: Path) -> RunComparison:
    """Compare two runs image by image, whatever the order of their test images.

    Raises:
        UserError: a run has no predictions on test images, or several labels per image; or the runs have other test images, or labels.
    """
    runs = [_tested(folder), _tested(other)]
    answers = first, second = [_answers(run, predictions) for run, predictions in runs]
    if {image: len(own) for image, own in first.items()} != {image: len(own) for image, own in second.items()}:
        numbers = [sum(map(len, own.values())) for own in answers]
        common = sum(min(len(own), len(second[image])) for image, own in first.items() if image in second)
        raise UserError(
            f"{shown(folder)} and {shown(other)} have different test {runs[0][0].noun} or labels ({numbers[0]:,} and {numbers[1]:,}, "
            f"{common:,} in both): train one of them again with data.split_from={shown(folder)}"
        )
    right, other_right = ([answer for image in first for answer in own[image]] for own in answers)
    return RunComparison((shown(folder), shown(other)), right, other_right, runs[0][0].noun)


def _tested(folder: Path) -> tuple[RunData, Predictions]:
    run = read(folder)
    if not (run.predictions and run.predictions.items):
        raise UserError(f"{shown(folder)} has no predictions on test images (report/test.csv): give a run that was tested")
    if run.about.get("multilabel"):
        raise UserError(f"{shown(folder)} has several labels per image: --against compares runs with one label per image")
    return run, run.predictions


def _answers(run: RunData, predictions: Predictions) -> dict[TestImage, list[bool]]:
    """Each test image, and whether the run is right; copies of an image are one image with several answers."""
    items = list(predictions.items)
    if (run.folder / FILE).is_file():
        stored = [image for image, *_ in read_split(run.folder).images["test"]]
        items = stored if len(stored) == len(items) else items  # fewer were tested with trainer.limit_test_batches
    found = defaultdict(list)
    for item, label, predicted in zip(items, predictions.labels, predictions.predicted, strict=True):
        found[item, tuple(run.class_names[number] for number in label)].append(label == predicted)
    return {image: sorted(right) for image, right in found.items()}
