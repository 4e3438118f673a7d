"""Labels of images that lie in a folder per class, and the accuracy of their predictions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ftlit.data.splitting.duplicates import content_hash
from ftlit.data.splitting.stored_split import read_split
from ftlit.errors import UserError, shorten
from ftlit.formatting import printable
from ftlit.inference.network_inputs import NamedInputs
from ftlit.intervals import accuracy_interval
from ftlit.run_folder import read_result


def labels_by_folder(inputs: NamedInputs, class_names: Sequence[str]) -> tuple[Iterable[str] | None, list[str]]:
    """The label of each image: the sub-folder that it lies in.

    Args:
        inputs: images, or texts, which have no labels.
        class_names: of the network.

    Returns:
        The labels, in the order of the inputs, or `None` unless each lies in a sub-folder with the name of a class; and a note where only
        some sub-folders have such a name.
    """
    found = set(inputs.folders())
    known = found.intersection(class_names)
    others = sorted(printable(name) for name in found - known if name is not None)
    if known and others:
        classes = shorten(map(printable, class_names))
        note = f"no accuracy, because these sub-folders are not named like a class of the run: {shorten(others)}"
        return None, [f"{note} (classes: {classes}); rename the folders, or move them elsewhere"]
    return (None if found - known else (name for name in inputs.folders() if name is not None)), []


def trained_on(inputs: NamedInputs, run: str | Path) -> str | None:
    """How many of the images a run was trained on, by the hashes of its split; `None` for none, or where they are not known.

    Args:
        inputs: images.
        run: folder of the run, or a checkpoint.
    """
    folder = Path(run).expanduser()
    hashes: set[str] = set()
    with suppress(UserError):
        result = read_result(folder)
        fitted = result.get("test/fitted_on", "train") if isinstance(result, dict) else "train"
        stored = read_split(folder)
        hashes = {image for image, split in stored.split_of.items() if split in str(fitted).split(" + ")}
    number = sum(_hash(path) in hashes for _, path in inputs) if hashes else 0
    noun = "image was" if len(inputs) == 1 else "images were"
    return (
        f"{number:,} of {len(inputs):,} {noun} among the training images of this run: the accuracy on new images is likely lower"
        if number
        else None
    )


def _hash(path: str) -> str | None:
    try:
        return content_hash(Path(path))
    except (OSError, UserError):
        return None


def describe_errors(images: Counter[str], errors: Counter[str], noun: str) -> str:
    """The accuracy with its 95 % interval, and the number of errors of each class, the most first.

    Args:
        images: label -> number of images with a prediction.
        errors: label -> number of those whose most probable class is another one.
        noun: plural of what is predicted.

    >>> describe_errors(Counter(ants=60, bees=40), Counter(ants=1, bees=9), "images")
    'accuracy 0.9000 (95 % interval 0.826 to 0.945) on 100 images with their folders as labels; errors: bees 9 of 40, ants 1 of 60'
    """
    number = images.total()
    accuracy = 1 - errors.total() / number
    low, high = accuracy_interval(accuracy, number)
    wrong = [f"{printable(label)} {of:,} of {images[label]:,}" for label, of in errors.most_common()]
    return f"accuracy {accuracy:.4f} (95 % interval {low:.3f} to {high:.3f}) on {number:,} {noun} with their folders as labels; " + (
        f"errors: {shorten(wrong)}" if wrong else "no errors"
    )
