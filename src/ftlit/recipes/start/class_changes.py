"""The classes of the data beside those of the run that a run goes on from."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ftlit.data.dataset import SPLITS
from ftlit.data.splitting.stored_split import StoredSplit
from ftlit.errors import UserError, shorten


@dataclass(frozen=True)
class ClassChanges:
    """The classes of the data, compared with those of an earlier run.

    Args:
        known: class number now -> class number in the run.
        renamed: name in the run -> name now, of classes whose images have another name.
        new: names of the classes that the run does not have.
        gone: names of the classes of the run that are not in the data.
    """

    known: Mapping[int, int]
    renamed: Mapping[str, str]
    new: Sequence[str]
    gone: Sequence[str]

    def describe(self) -> str:
        """How many classes are known, and which are new, renamed or gone."""
        parts = [f"{len(self.known)} known"]
        parts += [f"{len(self.new)} new ({shorten(self.new, most=5)})"] if self.new else []
        parts += [f"{before} is now called {now}" for before, now in self.renamed.items()]
        parts += [f"{len(self.gone)} of that run no longer in the data ({shorten(self.gone, most=5)})"] if self.gone else []
        return ", ".join(parts)


def match_classes(
    before: Sequence[str], now: Sequence[str], split: StoredSplit | None, labels_of: Mapping[str, tuple[int, ...]], run: str
) -> ClassChanges:
    """Find the classes of a run in the data: by name, and a class whose name is gone by its images.

    Args:
        before: names of the run's classes.
        now: names of the classes of the data.
        split: images of the run; `None`: not known.
        labels_of: hash of each image of the data -> class numbers now; empty where the content is not known.
        run: name of the run, for messages.

    Raises:
        UserError: none of the run's classes is in the data.
    """
    numbers = {name: number for number, name in enumerate(now)}
    known = {numbers[name]: number for number, name in enumerate(before) if name in numbers}
    gone = {number: name for number, name in enumerate(before) if name not in numbers}
    renamed = {}
    for old, new in _renamed(split, labels_of, [*gone], set(numbers.values()) - known.keys()):
        known[new] = old
        renamed[gone.pop(old)] = now[new]
    if not known:
        raise UserError(
            f"init_from={run}: none of the classes of that run ({shorten(before, most=5)}) is in these data ({shorten(now, most=5)}): "
            "leave init_from out; to use the backbone of that run only, give its best.ckpt as backbone.weights"
        )
    return ClassChanges(known, renamed, [name for name, number in numbers.items() if number not in known], list(gone.values()))


def _renamed(
    split: StoredSplit | None, labels_of: Mapping[str, tuple[int, ...]], gone: Sequence[int], new: set[int]
) -> Iterator[tuple[int, int]]:
    """Class number in the run and now, of each class of which most images now have the label of one new class."""
    images = [entry for name in SPLITS for entry in split.images[name]] if split else []
    for old in gone:
        found = Counter(labels_of[image] for image, labels, _ in images if labels == (old,) and image in labels_of)
        ((label, number),) = found.most_common(1) or [((), 0)]
        if len(label) == 1 and label[0] in new and number * 2 > found.total():
            new.discard(label[0])
            yield old, label[0]
