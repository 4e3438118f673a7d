"""Image files on disk: list the files of a csv, check headers, and collect them. Only greys of more than 8 bits are decoded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from os.path import abspath
from pathlib import Path
from types import MappingProxyType

from ftlit.data.csv_format import USUAL, CsvFormat
from ftlit.data.dataset import Collection, Examples, Split
from ftlit.data.file_paths import FilePaths, taken
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.band_files import band_headers, measure_bands
from ftlit.data.sources.csv_files import (
    SPLIT_COLUMN,
    cell_of,
    check_columns,
    group_of,
    in_several_files,
    labels_of,
    read_csv,
    split_of,
)
from ftlit.data.sources.folder_layout import FileEntry
from ftlit.data.sources.grey_range import measure_grey_range
from ftlit.data.sources.image_headers import ImageHeader, header_notes, read_headers
from ftlit.data.sources.label_notes import label_notes
from ftlit.data.splitting.splits import SplitRule, assemble
from ftlit.errors import UserError, invalid, shorten
from ftlit.formatting import count, shown


def collect(
    files: Sequence[FileEntry],
    *,
    input_spec: InputSpec,
    on_bad_image: str,
    rule: SplitRule,
    multilabel: bool = False,
    headers_of: Callable[..., list[ImageHeader]] = read_headers,
) -> tuple[Collection, InputSpec]:
    """Collect the listed files. Returns a checked collection (`ftlit.data.splitting.splits.assemble`) with sorted class names, and the
    input spec with the grey range of the files, or with mean and std of their bands.

    Args:
        files: in the order in which they are numbered.
        input_spec: what the network expects. If it has no `grey_range`, it is measured on training images of more than 8 bits; if it takes
            bands and has no `mean`, mean and std are measured on training images.
        on_bad_image: `stop` raises for a file whose header is not that of an image; `skip` decodes every file once, leaves out those
            that fail and says so in the notes. With `stop`, a truncated file with a valid header raises when it is read.
        rule: see `assemble`.
        multilabel: see `assemble`.
        headers_of: gives the headers of files, as `read_headers` does.

    Raises:
        UserError: files that cannot be used. The message has their number and the first three.
    """
    if input_spec.takes_bands:
        headers_of = partial(band_headers, channels=input_spec.channels)
    kept, paths, headers, notes = _checked(files, on_bad_image, headers_of)
    class_names = sorted({label for file in kept for label in file.labels})
    numbers = {name: number for number, name in enumerate(class_names)}
    found: dict[Split, Examples] = {}
    label_sets: dict[tuple[str, ...], tuple[int, ...]] = {}  # files with the same labels share one tuple
    for split in dict.fromkeys(file.split for file in kept):
        places = [place for place, file in enumerate(kept) if file.split == split]
        part, own = [kept[place] for place in places], taken(paths, places)
        label_sets |= {
            file.labels: tuple(sorted(numbers[label] for label in file.labels)) for file in part if file.labels not in label_sets
        }
        labels = [label_sets[file.labels] for file in part]
        groups = [file.group for file in part]
        found[split] = Examples(own, labels, image_reader(input_spec), own, groups if any(groups) else None)
    collection = assemble(found, class_names, rule, multilabel=multilabel)
    collection.notes[:0] = [*notes, *header_notes(paths, headers), *label_notes(class_names)]
    if input_spec.takes_bands:
        return _with_measured_bands(collection, input_spec)
    return _in_one_range(collection, {file.path for file, header in zip(kept, headers, strict=True) if header.wide_greys}, input_spec)


def _in_one_range(collection: Collection, wide_greys: Set[Path], input_spec: InputSpec) -> tuple[Collection, InputSpec]:
    """Give all images one range of grey values, which is measured on those of train among `wide_greys` unless the input spec has one."""
    wide = [path for path in collection.splits["train"].sources if path in wide_greys] if wide_greys else []
    if not wide or input_spec.grey_range is not None or (measured := measure_grey_range(wide)) is None:
        return collection, input_spec
    (black, white), (low, high) = measured.read_as, measured.found
    spec = replace(input_spec, grey_range=(black, white))
    splits = {split: replace(examples, load=image_reader(spec)) for split, examples in collection.splits.items()}
    few = f" (measured on {measured.measured:,} of them)" if measured.measured < len(wide) else ""
    collection.notes.append(
        f"{len(wide):,} training images have more than 8 bits per channel, with grey values from {low:g} to {high:g}{few}: "
        f"{black:g} is read as black and {white:g} as white in all images (to change this: backbone.input_spec.grey_range)"
    )
    if measured.not_finite:
        collection.notes.append(
            f"{measured.not_finite:,} of the {measured.measured:,} measured images have NaN or infinite pixels: "
            "NaN and -infinity are read as black, infinity as white"
        )
    return replace(collection, splits=splits), spec


def _with_measured_bands(collection: Collection, input_spec: InputSpec) -> tuple[Collection, InputSpec]:
    """Normalise all images by the mean and std of each band, which are measured on those of train unless the input spec has them."""
    if input_spec.mean:
        return collection, input_spec
    train = collection.splits["train"].sources
    measured = measure_bands(train, input_spec.channels)
    spec = replace(input_spec, mean=measured.mean, std=measured.std)
    splits = {split: replace(examples, load=image_reader(spec)) for split, examples in collection.splits.items()}
    few = f" {measured.images:,} of" if measured.images < len(train) else ""
    collection.notes.append(
        f"the {spec.channels} bands are normalised as measured on{few} {len(train):,} training images: {spec.normalisation} "
        "(to change this: backbone.input_spec.mean and std)"
    )
    if measured.constant:
        bands = shorten(map(str, measured.constant))
        collection.notes.append(f"bands with the same value in all measured images: {bands} (counted from 1); they carry no information")
    return replace(collection, splits=splits), spec


def _checked(
    files: Sequence[FileEntry], on_bad_image: str, headers_of: Callable[..., list[ImageHeader]]
) -> tuple[Sequence[FileEntry], Sequence[Path], list[ImageHeader], list[str]]:
    """Return the files that are images, their paths and headers, and a note on files that are left out."""
    if on_bad_image not in (options := ("stop", "skip")):
        raise invalid("data.on_bad_image", on_bad_image, options)
    paths = FilePaths.of((file.folder, file.name) for file in files)
    headers = headers_of(paths, decode=on_bad_image == "skip")
    faults = {place: header.fault for place, header in enumerate(headers) if header.fault is not None}
    if not faults:
        return files, paths, headers, []
    bad = [shown(files[place].path) + (fault and f" ({fault})") for place, fault in faults.items()]
    if on_bad_image == "stop":
        raise UserError(f"{len(faults)} of {len(files)} files are not images: give data.on_bad_image=skip, or remove {shorten(bad, 3)}")
    places = [place for place in range(len(files)) if place not in faults]
    kept = [files[place] for place in places]
    if emptied := _classes(files[place] for place in faults) - _classes(kept):
        gone = shorten(sorted(f"class {label} in {split}" for split, label in emptied))
        raise UserError(f"no file of {gone} can be read as an image: replace the damaged files ({shorten(bad, 3)})")
    notes = [f"{len(faults)} of {len(files)} files are ignored, because they cannot be read as images: {shorten(bad, 10)}"]
    return kept, taken(paths, places), [headers[place] for place in places], notes


def _classes(files: Iterable[FileEntry]) -> set[tuple[Split, str]]:
    return {(file.split, label) for file in files for label in file.labels}


def list_csv(
    path: str | Path,
    *,
    others: Mapping[Split, str | Path | None] = MappingProxyType({}),
    root: str | Path | None = None,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = SPLIT_COLUMN,
    label_separator: str | None = None,
    group_column: str | None = None,
    form: CsvFormat = USUAL,
) -> list[FileEntry]:
    """List the files of a csv with a header line, in its order, and those of separate files for val and test after them.

    Args:
        path: the csv file.
        others: split -> a separate file for it, or `None`.
        root: base of relative paths; `None` is the folder of the csv file that has them.
        path_column: column with the image's path.
        label_column: column with its label.
        split_column: column of `path` with train, val or test; without a column `split` all images are train.
        label_separator: separator of several labels in one cell, an empty cell has none; `None`: a cell is one label.
        group_column: column with the group of an image (patient, video, site), which a split keeps together; `None`: no groups.
        form: encoding and separator of the files.

    Raises:
        UserError: a missing column or file, an unknown split, a missing label, a path listed twice, a split that two files give.
    """
    folders: dict[Path, Path] = {}  # files in the same folder share its path

    def files_of(csv: Path, split_column: str | None, split: Split) -> list[FileEntry]:
        columns, rows = read_csv(csv, form)
        wanted = {"path_column": path_column, "label_column": label_column, "split_column": split_column, "group_column": group_column}
        check_columns(csv, columns, wanted)
        base = csv.parent if root is None else Path(root).expanduser()
        files = [
            FileEntry(
                folders.setdefault((file := base / cell_of(row, path_column, at)).parent, file.parent),
                file.name,
                labels_of(row, label_column, label_separator, at),
                split_of(row, split_column, at, split),
                group_of(row, group_column),
            )
            for at, row in rows
        ]
        _check_listed(files, csv, base)
        return files

    files = in_several_files(path, others, split_column, files_of)
    _check_listed_once(files, [path, *(csv for csv in others.values() if csv is not None)])
    return files


def _check_listed(files: Sequence[FileEntry], path: Path, base: Path) -> None:
    if not files:
        raise UserError(f"{shown(path)} lists no images: add one row per image")
    if missing := [file.path for file in files if not file.path.is_file()]:
        hint = f"correct the paths, or, if relative paths do not start at {shown(base)}, give data.root=FOLDER where they do"
        if all("\\" in str(name) for name in missing):
            hint = f"write / for each \\ (relative paths start in {shown(base)})"
        raise UserError(
            f"{shown(path)} lists {count(len(missing), 'file')} that cannot be found, {shorten(map(shown, missing), 3)}: {hint}"
        )


def _check_listed_once(files: Sequence[FileEntry], lists: Sequence[str | Path]) -> None:
    if twice := [shown(file) for file, times in Counter(abspath(file.path) for file in files).items() if times > 1]:
        verb = "lists" if len(lists) == 1 else "list"
        hint = "remove the repeated rows, or write several labels of a file in one cell and give data.label_separator=..."
        raise UserError(f"{' and '.join(map(shown, lists))} {verb} {count(len(twice), 'file')} more than once, {shorten(twice, 3)}: {hint}")
