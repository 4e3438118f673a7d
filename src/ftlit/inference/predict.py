"""What `ftlit predict` does: a row for each image, or text; or a map over an image."""

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

from ftlit.data.image_files import list_unlabelled, read_csv
from ftlit.data.images import BadImage
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, unknown
from ftlit.inference.network import Network, Prediction, load

FORMATS = ("csv", "jsonl")
Example = tuple[str, str]  # as it was given, which is how its row is called, and the path, or text, that it stands for
Row = tuple[str, Prediction | str]  # what was given, and what the network says of it, or why it says nothing


@dataclass(frozen=True)
class Asked:
    """How to predict.

    Args:
        format: `csv`, or `jsonl`: an object a line.
        top: how many classes to name; all, where there are fewer.
        batch_size: that run together.
        workers: processes that read images.
        trust: see `ftlit.load`.
    """

    format: str = "csv"
    top: int = 1
    batch_size: int = 64
    workers: int = 0
    trust: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a whole number, {least} or more")


def predict(run: str, paths: Sequence[str], asked: Asked, rows: Callable[..., Iterable[Row] | None]) -> int:
    """Print a row for each image in the order given, and at the end, on stderr, how many could not be read, which it returns.

    Args:
        run: folder of a run, or a checkpoint.
        paths: image files, folders of them, csv files with a column `path` (of texts `text`).
        asked: how.
        rows: `rows_of`, or another that takes the same; `None` from it: another process prints them.

    Raises:
        UserError: a run that cannot be loaded, a path that is not there.
    """
    network = load(run, trust=asked.trust)
    examples = list(examples_of(paths, texts=isinstance(network.backbone.input_spec, TextSpec)))
    found = rows(network, examples, asked.batch_size, asked.workers)
    if found is None:
        return 0
    failed = write_rows(sys.stdout, found, replace(asked, top=min(asked.top, len(network.class_names))))
    if failed:
        print(f"ftlit: {failed} of {len(examples)} {network.backbone.input_spec.noun} could not be read", file=sys.stderr)
    return failed


def examples_of(paths: Sequence[str], *, texts: bool = False) -> Iterator[Example]:
    """The images, or texts, that these paths stand for, in order; a folder's by name, all the way down."""
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            yield from _column(path, "text" if texts else "path")
        elif texts:
            raise UserError(f"{path}: this run's network takes texts, give csv files with a column text")
        elif path.is_dir():
            yield from ((str(listed.path), str(listed.path)) for listed in list_unlabelled(path))
        else:
            yield str(path), str(path)  # one that is missing is a row with the reason


def rows_of(network: Network, examples: Sequence[Example], batch_size: int, workers: int) -> Iterator[Row]:
    """A row for each, in order; on a GPU, where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.backbone.to(device)
    network.head.to(device)
    with _progress(len(examples)) as advance:
        for batch in DataLoader(Inputs(network, examples), batch_size, num_workers=workers, collate_fn=list):
            yield from answers(network, batch, device)
            advance(len(batch))


class Inputs(Dataset[tuple[str, Tensor | str]]):
    """Examples as the network takes them, or why one cannot be.

    Args:
        network: that will.
        examples: paths, or texts.
    """

    def __init__(self, network: Network, examples: Sequence[Example]) -> None:
        self.network, self.examples = network, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[str, Tensor | str]:
        told, example = self.examples[i]
        try:
            return told, self.network.as_input(example)
        except BadImage as error:
            missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
            return told, "no such file or folder" if missing else str(error)


def answers(network: Network, batch: Sequence[tuple[str, Tensor | str]], device: torch.device) -> list[Row]:
    """Rows of a batch of `Inputs`."""
    inputs = [value for _, value in batch if isinstance(value, Tensor)]
    said = iter(network.predictions(network.probabilities(torch.stack(inputs).to(device)).cpu()) if inputs else [])
    return [(name, value if isinstance(value, str) else next(said)) for name, value in batch]


def write_rows(to: TextIO, rows: Iterable[Row], asked: Asked) -> int:
    """Write them, each as soon as it is there. Returns how many have no prediction."""
    writer = csv.writer(to, lineterminator="\n")
    more = [f"{name}_{i}" for i in range(2, asked.top + 1) for name in ("label", "probability")]
    if asked.format == "csv":
        writer.writerow(["path", "label", "probability", *more, "error"])
    failed = 0
    for name, said in rows:
        failed += isinstance(said, str)
        top = [] if isinstance(said, str) else said.top(asked.top)
        if asked.format == "jsonl":
            found: dict[str, Any] = {"predictions": [{"label": label, "probability": round(value, 6)} for label, value in top]}
            to.write(json.dumps({"path": name, **({"error": said} if isinstance(said, str) else found)}, ensure_ascii=False) + "\n")
        else:
            cells = [cell for label, value in top for cell in (label, f"{value:.4f}")]
            writer.writerow([name, *cells, *[""] * (2 * asked.top - len(cells)), said if isinstance(said, str) else ""])
    return failed


def predict_dense(run: str, paths: Sequence[str], *, label: str | None, size: int | None, out: str, trust: bool) -> None:
    """Draw where each image looks like `label` (`None`: like its likeliest class), and print the pictures' paths.

    Args:
        run: folder of a run, or a checkpoint.
        paths: see `predict`.
        label: a class.
        size: pixels that an image's shorter side is brought to; `None`: twice that of the training.
        out: folder of the pictures, made where it is not there; each is called as its image, with `_dense.png`.
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
        raise UserError(f"two images would be drawn as {twice[0]}: predict them apart, each with its own --out")
    for path, target in zip(images, targets, strict=True):
        picture, probabilities = network.map_of(path, size)
        number = int(probabilities.mean(dim=(1, 2)).argmax()) if label is None else network.class_names.index(label)
        _draw(target, picture, probabilities[number], network, f"{network.class_names[number]} in {Path(path).name}")
        print(target)


def _column(path: Path, name: str) -> Iterator[Example]:
    known, rows = read_csv(path)
    if name not in known:
        raise unknown(f"column in {path}", name, known)
    for _, row in rows:
        yield row[name], str(path.parent / row[name]) if name == "path" else row[name]


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr, where that is a terminal; rows go to stdout."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("predicting", total=total)
        yield lambda done: progress.advance(task, done)


def _draw(target: Path, picture: Tensor, map_hw: Tensor, network: Network, title: str) -> None:
    """The picture (H, W, 3), and over it the probability of each window, drawn where the middle of the window is."""
    from matplotlib.figure import Figure  # here, so that --help is fast; no pyplot: no screen is needed

    (height, width), (rows, columns), size = picture.shape[:2], map_hw.shape, network.input_spec.size
    figure = Figure(figsize=(6.4 * width / height + 1.2, 6.4), layout="constrained")
    axes = figure.add_subplot(title=title, xticks=[], yticks=[])
    axes.imshow(picture.numpy(), extent=(0, width, height, 0))
    stride = [(length - size) / (places - 1) if places > 1 else size for length, places in ((height, rows), (width, columns))]
    top, left = (size / 2 - step / 2 for step in stride)
    extent = (left, left + columns * stride[1], top + rows * stride[0], top)
    shown = axes.imshow(map_hw.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.5, extent=extent, interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(shown, ax=axes, label=f"probability in the {size} px around", alpha=1.0, shrink=0.8)
    figure.savefig(target, dpi=100)
