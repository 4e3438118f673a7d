"""Published data sets: scikit-learn's handwritten digits, and torchvision's classification data sets by class name."""

from collections.abc import Mapping
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from ftlit.data.dataset import Collection, Examples, Split
from ftlit.data.images import BadImage, to_rgb
from ftlit.data.sources.torchvision_labels import changes_targets, check_options, class_names, labels_of
from ftlit.data.splitting.duplicates import Content
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.errors import UserError, one_line, unknown
from ftlit.identity.code_identity import versioned

Arguments = Mapping[str, Any]  # of a torchvision data set's constructor


def digits(rule: SplitRule) -> Collection:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; see `ftlit.data.splitting.splits.assemble`."""
    values, labels = _digit_arrays()
    images = list((values * (255 / 16)).round().astype(np.uint8))  # its grey values range from 0 to 16
    found = Examples(images, [(int(label),) for label in labels], _array_to_rgb, images)
    return assemble({"train": found}, [str(digit) for digit in range(10)], rule)


@cache  # a run with scenario=auto builds its data twice
def _digit_arrays() -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """What `sklearn.datasets.load_digits` reads from the same file; to import that takes as long as half of torch."""
    package = find_spec("sklearn")  # does not import it
    assert package is not None and package.submodule_search_locations
    rows = np.loadtxt(Path(package.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


@versioned("read_digit", 1)
def _array_to_rgb(array: "np.ndarray[Any, Any]") -> Image.Image:
    return Image.fromarray(array).convert("RGB")


def _by_split(**splits: str) -> dict[str, Arguments]:
    return {split: {"split": value} for split, value in splits.items()}


_FLAG: dict[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_TWO = _by_split(train="train", test="test")
_THREE = _by_split(train="train", val="val", test="test")
_ONE: dict[str, Arguments] = {"train": {}}

# data set -> split -> constructor arguments
DATASETS: dict[str, dict[str, Arguments]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "SVHN", "StanfordCars"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "FakeData", "SEMEION", "SUN397"), _ONE),
    **dict.fromkeys(("CLEVRClassification", "ImageNet", "Imagenette"), _by_split(train="train", val="val")),
    "Country211": _by_split(train="train", val="valid", test="test"),
    "OxfordIIITPet": _by_split(train="trainval", test="test"),
    "Places365": _by_split(train="train-standard", val="val"),
}
# data sets in which a mirrored image has another meaning, or none
NO_FLIP = frozenset({"EMNIST", "GTSRB", "KMNIST", "MNIST", "QMNIST", "RenderedSST2", "SEMEION", "SVHN", "USPS"})


def torchvision_dataset(name: str, rule: SplitRule, *, root: str | Path, download: bool, options: Arguments) -> Collection:
    """A classification data set of torchvision; see `ftlit.data.splitting.splits.assemble`.

    Args:
        name: of its class in `torchvision.datasets`.
        rule: see `assemble`.
        root: folder of the data set, also for a download.
        download: whether to download missing files.
        options: more constructor arguments, such as EMNIST's `split`. The labels are those of the data set with these arguments.

    Raises:
        UserError: an unknown name; a data set that is not in `root`; arguments that the class does not accept, that choose the split, or
            with which the targets are not class numbers.
    """
    if name not in DATASETS:
        raise unknown("data set", name, sorted(DATASETS), owner="torchvision")
    check_options(name, options, DATASETS[name])
    parts = {split: _build(name, Path(root).expanduser(), download, {**options, **how}) for split, how in DATASETS[name].items()}
    labels = {split: labels_of(part, options) for split, part in parts.items()}
    found: dict[Split, Examples] = {
        split: Examples(range(len(part)), labels[split], partial(_load, part), _contents(part))  # type: ignore[misc]
        for split, part in parts.items()
    }
    number = 1 + max(label for several in labels.values() for (label,) in several)
    return assemble(found, class_names(parts["train"], number, relabelled=changes_targets(options)), rule)


def _build(name: str, root: Path, download: bool, options: Arguments) -> Any:
    cls = getattr(datasets, name)
    takes = signature(cls).parameters
    given = dict(options)
    if "root" in takes:
        given["root"] = str(root)
    if "download" in takes or download:  # SEMEION downloads by default; some classes pass it on in **kwargs
        given["download"] = download
    required = [key for key, argument in takes.items() if argument.default is argument.empty and argument.kind != argument.VAR_KEYWORD]
    if missing := [key for key in required if key not in given]:
        words = " ".join(f"+data.options.{key}=..." for key in missing)
        raise UserError(f"{name} needs the argument {' and '.join(map(repr, missing))}: give {words}")
    try:
        return cls(**given)
    except TypeError as error:
        raise UserError(f"{name} does not accept these arguments: give only {', '.join(takes)} ({one_line(error)})") from error
    except Exception as error:  # each class has its own: not found, a damaged archive, no network, a package that it needs
        if "download=True" in str(error):
            give = "give data.download=true to download it, or data.root=... with the folder that contains it"
            raise UserError(f"{name} is not in the folder {root}: {give}") from error
        raise UserError(f"{name} cannot be loaded: {one_line(error)}") from error


def _contents(dataset: Any) -> list[Content] | None:
    """File or array of each image, from the attributes of torchvision's classes."""
    for attribute in ("_image_files", "_images", "data", "_samples", "samples"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            first = [value[0] if attribute.endswith("samples") else value for value in values]
            return [Path(value) if isinstance(value, str | Path) else np.asarray(value) for value in first]
    return None


@versioned("read_torchvision_image", 1, uses=(to_rgb,))
def _load(dataset: Any, place: int) -> Image.Image:
    try:
        return to_rgb(dataset[place][0])
    except Exception as error:  # see read_image
        raise BadImage(f"image {place} of {type(dataset).__name__} cannot be read: {one_line(error)}") from error
