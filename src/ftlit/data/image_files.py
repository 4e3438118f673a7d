"""Image files on disk, listed by a folder's structure or a csv file, and checked by their headers. Nothing is decoded."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import walk
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ftlit.data.csv_files import cell_of, labels_of, missing_path, read_csv, split_of
from ftlit.data.dataset import SPLIT_NAMES, SPLITS, Collection, Examples, Split
from ftlit.data.images import read_image, shown
from ftlit.data.splits import assemble
from ftlit.errors import UserError, one_line, shorten, unknown

IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}  # of file managers, besides names that start with a dot


@dataclass(frozen=True)
class FileEntry:
    """An image file with the names of its labels and its split."""

    path: Path
    labels: tuple[str, ...]
    split: Split


def collect(
    files: Sequence[FileEntry],
    *,
    load: Callable[[str | Path], Image.Image],
    on_bad_image: str,
    fractions: Mapping[Split, float],
    split_seed: int,
    multilabel: bool = False,
) -> Collection:
    """A checked collection of the listed files; see `ftlit.data.splits.assemble`. Class names are sorted.

    Args:
        files: in the order in which they are numbered.
        load: reads a path.
        on_bad_image: `stop` raises for a file whose header is not that of an image; `skip` decodes every file once, leaves out those
            that fail and says so in the notes. With `stop`, a truncated file with a valid header raises when it is read.
        fractions: see `assemble`.
        split_seed: see `assemble`.
        multilabel: see `assemble`.

    Raises:
        UserError: files that cannot be used: their number and the first ten.
    """
    kept, notes = _checked(files, on_bad_image)
    class_names = sorted({label for file in kept for label in file.labels})
    numbers = {name: number for number, name in enumerate(class_names)}
    found = {}
    for split in dict.fromkeys(file.split for file in kept):
        part = [file for file in kept if file.split == split]
        paths = [file.path for file in part]
        found[split] = Examples(paths, [tuple(sorted(numbers[label] for label in file.labels)) for file in part], load, paths)
    collection = assemble(found, class_names, fractions=fractions, split_seed=split_seed, multilabel=multilabel)
    collection.notes[:0] = notes
    return collection


def _checked(files: Sequence[FileEntry], on_bad_image: str) -> tuple[list[FileEntry], list[str]]:
    """The files that are images, and a note on those that are left out."""
    if on_bad_image not in (options := ("stop", "skip")):
        raise unknown("on_bad_image", on_bad_image, options)
    check = _header_fault if on_bad_image == "stop" else _decoding_fault
    faults = {file: fault for file in files if (fault := check(file.path)) is not None}
    names = shorten((shown(file.path) + (fault and f" ({fault})") for file, fault in faults.items()), most=10)
    if faults and on_bad_image == "stop":
        raise UserError(f"not an image by its header: {len(faults)} of {len(files)} files (on_bad_image=skip leaves them out): {names}")
    kept = [file for file in files if file not in faults]
    emptied = {(f.split, label) for f in faults for label in f.labels} - {(f.split, label) for f in kept for label in f.labels}
    if emptied:
        gone = shorten(sorted(f"{label} ({split})" for split, label in emptied))
        raise UserError(f"no image is left of {gone}: the files that cannot be read are {names}")
    return kept, [f"left out, not readable as an image: {len(faults)} of {len(files)} files: {names}"] if faults else []


def _header_fault(path: Path) -> str | None:
    """Why PIL does not open this file; empty for a file that is not an image, `None` if it opens."""
    try:
        with Image.open(path):
            return None
    except UnidentifiedImageError:
        return ""
    except Exception as error:  # decoders raise anything
        return one_line(error)


def _decoding_fault(path: Path) -> str | None:
    """The same after decoding the whole file; a JPEG at an eighth of its size, which takes a third of the time and reads every byte."""
    fault = _header_fault(path)
    if fault is None:
        try:
            read_image(path, at_least=1)
        except UserError:
            return "damaged"
    return fault


def list_folder(root: str | Path) -> list[FileEntry]:
    """The files of `root/class/...` (all in train) or of `root/{train,val,test}/class/...`, sorted.

    `valid` and `validation` mean val. Names that start with a dot and files of file managers are ignored.

    Raises:
        UserError: another structure, an empty class folder.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise missing_path("folder", root)
    named = [(SPLIT_NAMES[folder.name.lower()], folder) for folder in _folders(root) if folder.name.lower() in SPLIT_NAMES]
    if not named:
        return _list_flat(root)
    splits = [split for split, _ in named]
    unexpected = [folder.name for folder in _folders(root) if folder.name.lower() not in SPLIT_NAMES]
    if unexpected or "train" not in splits or len(set(splits)) < len(splits):
        has = shorten(shown(folder.name) for folder in _folders(root))
        raise UserError(f"{shown(root)} has the folders {has}: give train, val and test (train at least), or one folder for each class")
    return [file for split, folder in sorted(named, key=lambda pair: SPLITS.index(pair[0])) for file in _list_classes(folder, split)]


def list_unlabelled(root: str | Path) -> list[FileEntry]:
    """All files with the suffix of an image below a folder, sorted, without labels, all in train. Raises `UserError` if there are none."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise missing_path("folder", root)
    suffixes = Image.registered_extensions()
    files = [FileEntry(path, (), "train") for path in _files(root) if path.suffix.lower() in suffixes]
    if not files:
        raise UserError(f"{shown(root)} holds no image file ({len(list(_files(root)))} others)")
    return files


def _list_flat(root: Path) -> list[FileEntry]:
    """Class folders without splits. A folder that contains a data set is a root that is one level too high."""
    inside = [folder for folder in _folders(root) if any(name.name.lower() in SPLIT_NAMES for name in _folders(folder))]
    if inside or (len(_folders(root)) == 1 and len(_folders(_folders(root)[0])) > 1):
        deeper = shown((inside or _folders(root))[0])
        raise UserError(f"{shown(root)} does not hold class folders or train, val and test: did you mean data.root={deeper}?")
    return _list_classes(root, "train")


def _list_classes(root: Path, split: Split) -> list[FileEntry]:
    classes = {folder: list(_files(folder)) for folder in _folders(root)}
    if not classes:
        raise UserError(f"{shown(root)} has no class folders ({len(list(_files(root)))} files): give one folder for each class")
    if empty := [shown(folder) for folder, files in classes.items() if not files]:
        raise UserError(f"empty class folders ({len(empty)}): {shorten(empty, most=10)}")
    return [FileEntry(path, (folder.name,), split) for folder, files in classes.items() for path in files]


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not _ignored(path.name))


def _files(root: Path) -> Iterator[Path]:
    """All files below a folder and its subfolders, sorted."""
    for folder, inside, names in walk(root, followlinks=True):
        inside[:] = sorted(name for name in inside if not _ignored(name))
        yield from (Path(folder, name) for name in sorted(names) if not _ignored(name))


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def list_csv(
    path: str | Path,
    *,
    root: str | Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    label_separator: str | None = None,
) -> list[FileEntry]:
    """The files of a csv with a header line, in its order.

    Args:
        path: the csv file, UTF-8.
        root: base of relative paths; `None` is the folder of the csv file.
        path_column: column with the image's path.
        label_column: column with its label.
        split_column: column with train, val or test; without it all images are train.
        label_separator: separator of several labels in one cell, an empty cell has none; `None`: a cell is one label.

    Raises:
        UserError: a missing column or file, an unknown split, a missing label, a path listed twice.
    """
    path = Path(path).expanduser()
    columns, rows = read_csv(path)
    for column in (path_column, label_column):
        if column not in columns:
            raise unknown(f"column in {shown(path)}", column, columns)
    base = path.parent if root is None else Path(root).expanduser()
    files = [
        FileEntry(base / cell_of(row, path_column, at), labels_of(row, label_column, label_separator, at), split_of(row, split_column, at))
        for at, row in rows
    ]
    _check_listed(files, path, base)
    return files


def _check_listed(files: Sequence[FileEntry], path: Path, base: Path) -> None:
    if not files:
        raise UserError(f"{shown(path)} lists no image")
    if twice := [shown(file) for file, count in Counter(file.path for file in files).items() if count > 1]:
        hint = "give one row each; several labels go into one cell, with label_separator"
        raise UserError(f"{shown(path)} lists files more than once ({len(twice)}): {shorten(twice, 10)}; {hint}")
    if missing := [shown(file.path) for file in files if not file.path.is_file()]:
        hint = f"paths start from root={shown(base)}"
        raise UserError(f"{shown(path)} lists files that are not there ({len(missing)}): {shorten(missing, 10)}; {hint}")
    if "train" not in {file.split for file in files}:
        raise UserError(f"{shown(path)} lists no image of the train split")
