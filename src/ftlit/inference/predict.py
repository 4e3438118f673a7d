"""The command `ftlit predict`: a row for each image or text, or a probability map over an image."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ftlit.data.images import BadImage
from ftlit.data.sources.csv_files import read_csv
from ftlit.data.sources.folder_files import list_unlabelled
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, unknown
from ftlit.files import write_figure
from ftlit.formatting import harmless, printable
from ftlit.inference.network import NOT_FINITE, Network, Prediction, load

OUTPUT_FORMATS = ("csv", "jsonl")
NamedInput = tuple[str, str]  # name of its row, as given by the user; path or text
PredictionRow = tuple[str, Prediction | str]  # name; prediction, or the reason why there is none


@dataclass(frozen=True)
class PredictOptions:
    """Options of `ftlit predict`.

    Args:
        format: `csv`, or `jsonl`: one object per line.
        top: number of classes in a row; all, if there are fewer.
        batch_size: number of inputs that run together.
        workers: number of processes that read images.
        trust: see `ftlit.load`.
        column: of csv files; `None`: `path`, or `text` of texts.
    """

    format: str = "csv"
    top: int = 1
    batch_size: int = 64
    workers: int = 0
    trust: bool = False
    column: str | None = None

    def __post_init__(self) -> None:
        if self.format not in OUTPUT_FORMATS:
            raise unknown("format", self.format, OUTPUT_FORMATS)
        for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a whole number, {least} or more")


def predict(run: str, paths: Sequence[str], options: PredictOptions, rows: Callable[..., Iterable[PredictionRow] | None]) -> int:
    """Print a row for each image in the order given, then, on stderr, the number of images without a prediction. Returns that number.

    Args:
        run: folder of a run, or a checkpoint.
        paths: image files, folders of them, csv files with a column of paths or texts.
        options: see `PredictOptions`.
        rows: `rows_of`, or a function with the same arguments; it returns `None` if another process prints the rows.

    Raises:
        UserError: a run that cannot be loaded, a path that does not exist.
    """
    network = load(run, trust=options.trust)
    examples = list(examples_of(paths, texts=isinstance(network.backbone.input_spec, TextSpec), column=options.column))
    found = rows(network, examples, options.batch_size, options.workers)
    if found is None:
        return 0
    failed = write_rows(sys.stdout, found, replace(options, top=min(options.top, len(network.class_names))))
    if failed:
        print(f"ftlit: {failed} of {len(examples)} {network.backbone.input_spec.noun} have no prediction, see their rows", file=sys.stderr)
    return failed


def examples_of(paths: Sequence[str], *, texts: bool = False, column: str | None = None) -> Iterator[NamedInput]:
    """The images or texts of these paths, in order; those of a folder by name, recursively; those of a csv file by a column."""
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            yield from _column(path, column or ("text" if texts else "path"), texts=texts)
        elif texts:
            raise UserError(f"{path}: this run's network takes texts, give csv files with a column text")
        elif path.is_dir():
            yield from ((str(listed.path), str(listed.path)) for listed in list_unlabelled(path)[0])
        else:
            yield str(path), str(path)  # a missing file becomes a row with the reason


def rows_of(network: Network, examples: Sequence[NamedInput], batch_size: int, workers: int) -> Iterator[PredictionRow]:
    """A row for each input, in order; computed on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.backbone.to(device)
    network.head.to(device)
    with _progress(len(examples)) as advance:
        for batch in DataLoader(Inputs(network, examples), batch_size, num_workers=workers, collate_fn=list):
            yield from predict_batch(network, batch, device)
            advance(len(batch))


class Inputs(Dataset[tuple[str, Tensor | str]]):
    """Inputs as tensors, or the reason why one cannot be read.

    Args:
        network: that takes them.
        examples: paths, or texts.
    """

    def __init__(self, network: Network, examples: Sequence[NamedInput]) -> None:
        self.network, self.examples = network, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[str, Tensor | str]:
        name, example = self.examples[i]
        try:
            return name, self.network.as_input(example)
        except BadImage as error:
            missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
            return name, "no such file or folder" if missing else str(error)


def predict_batch(network: Network, batch: Sequence[tuple[str, Tensor | str]], device: torch.device) -> list[PredictionRow]:
    """The rows of a batch of `Inputs`."""
    inputs = [value for _, value in batch if isinstance(value, Tensor)]
    found: Iterator[Tensor] = iter(network.probabilities(torch.stack(inputs).to(device)).cpu() if inputs else ())
    return [(name, value if isinstance(value, str) else _prediction(network, next(found))) for name, value in batch]


def _prediction(network: Network, probabilities_K: Tensor) -> Prediction | str:
    return network.predictions(probabilities_K[None])[0] if probabilities_K.isfinite().all() else NOT_FINITE


def write_rows(to: TextIO, rows: Iterable[PredictionRow], options: PredictOptions) -> int:
    """Write each row as soon as it is computed. Returns the number of rows without a prediction."""
    writer = csv.writer(to, lineterminator="\n")
    more = [f"{name}_{i}" for i in range(2, options.top + 1) for name in ("label", "probability")]
    if options.format == "csv":
        writer.writerow(["path", "label", "probability", *more, "error"])
    failed = 0
    for name, result in ((printable(name), result) for name, result in rows):
        failed += isinstance(result, str)
        top = [] if isinstance(result, str) else result.top(options.top)
        if options.format == "jsonl":
            found: dict[str, Any] = {"predictions": [{"label": label, "probability": round(value, 6)} for label, value in top]}
            to.write(json.dumps({"path": name, **({"error": result} if isinstance(result, str) else found)}, ensure_ascii=False) + "\n")
        else:
            cells = [cell for label, value in top for cell in (harmless(label), f"{value:.4f}")]
            writer.writerow([harmless(name), *cells, *[""] * (2 * options.top - len(cells)), result if isinstance(result, str) else ""])
    return failed


def predict_dense(run: str, paths: Sequence[str], *, label: str | None, size: int | None, out: str, trust: bool) -> None:
    """Draw the probability of `label` (`None`: of the most probable class) over each image, and print the paths of the figures.

    Args:
        run: folder of a run, or a checkpoint.
        paths: see `predict`.
        label: a class.
        size: pixels of the shorter side of an image after resizing; `None`: twice the training size.
        out: folder of the figures, created if necessary; the name of a figure is that of its image with `_dense.png`.
        trust: see `ftlit.load`.

    Raises:
        UserError: a run, an image, a class or a size that cannot be used.
    """
    network = load(run, trust=trust)
    if label is not None and label not in network.class_names:
        raise unknown("class", label, network.class_names)
    images = [path for _, path in examples_of(paths)]
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{Path(path).stem}_dense.png" for path in images]
    if twice := [str(target) for target in targets if targets.count(target) > 1]:
        raise UserError(f"two images would be drawn as {twice[0]}: predict them separately, each with its own --out")
    for path, target in zip(images, targets, strict=True):
        picture, probabilities = network.map_of(path, size)
        number = int(probabilities.mean(dim=(1, 2)).argmax()) if label is None else network.class_names.index(label)
        _draw(target, picture, probabilities[number], network, f"{network.class_names[number]} in {Path(path).name}")
        print(printable(str(target)))


def _column(path: Path, name: str, *, texts: bool) -> Iterator[NamedInput]:
    known, rows = read_csv(path)
    if name not in known:
        raise UserError(f"{unknown(f'column in {path}', name, known)}; --column chooses one")
    for _, row in rows:
        yield row[name], row[name] if texts else str(path.parent / row[name])


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar on stderr, if that is a terminal; rows go to stdout."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("predicting", total=total)
        yield lambda done: progress.advance(task, done)


def _draw(target: Path, picture: Tensor, map_hw: Tensor, network: Network, title: str) -> None:
    """The image (H, W, 3), and over it the probability of each window, at the centre of the window."""
    from matplotlib.figure import Figure  # here, so that --help is fast; no pyplot: no screen is needed

    (height, width), (rows, columns), size = picture.shape[:2], map_hw.shape, network.input_spec.size
    figure = Figure(figsize=(6.4 * width / height + 1.2, 6.4), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.set_title(printable(title), parse_math=False)  # a class name may look like a formula
    axes.imshow(picture.numpy(), extent=(0, width, height, 0))
    stride = [(length - size) / (places - 1) if places > 1 else size for length, places in ((height, rows), (width, columns))]
    top, left = (size / 2 - step / 2 for step in stride)
    extent = (left, left + columns * stride[1], top + rows * stride[0], top)
    shown = axes.imshow(map_hw.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.5, extent=extent, interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(shown, ax=axes, label=f"probability in the {size} px around", alpha=1.0, shrink=0.8)
    write_figure(target, figure, dpi=100)
