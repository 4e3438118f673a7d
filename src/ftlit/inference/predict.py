"""The command `ftlit predict`: a row for each image or text."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ftlit.data.images import BadImage
from ftlit.data.loading import default_workers, in_shared_memory
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, unknown
from ftlit.inference.folder_labels import describe_errors, labels_by_folder, trained_on
from ftlit.inference.load_network import load
from ftlit.inference.network import NOT_FINITE, Network
from ftlit.inference.network_inputs import NamedInput, NamedInputs, pixels_of
from ftlit.inference.prediction import OUTPUT_FORMATS, Prediction, PredictionRow, RowWriter, unsure_first
from ftlit.inference.prediction_sets import threshold_of
from ftlit.inference.prior import NO_SETS, Prior, sum_notes

HELD = 20_000  # inputs that are listed for the loader at a time: memory does not grow with their number


@dataclass(frozen=True)
class PredictOptions:
    """Options of `ftlit predict`.

    Args:
        format: `csv`, or `jsonl`: one object per line.
        top: number of classes in a row; all, if there are fewer.
        batch_size: number of inputs that run together.
        workers: number of processes that read images; `None`: see `default_workers`.
        trust: see `ftlit.load`.
        column: of csv files; `None`: `path`, or `text` of texts.
        coverage: of the prediction set in each row; `None`: no sets.
        prior: class frequencies, see `Network.with_prior`; `None`: those that the network was trained for.
        unsure_first: print the least certain predictions first, once all are computed.
    """

    format: str = "csv"
    top: int = 1
    batch_size: int = 64
    workers: int | None = None
    trust: bool = False
    column: str | None = None
    coverage: float | None = None
    prior: Prior | None = None
    unsure_first: bool = False

    def __post_init__(self) -> None:
        if self.format not in OUTPUT_FORMATS:
            raise unknown("format", self.format, OUTPUT_FORMATS)
        if self.coverage is not None and self.prior is not None:
            raise UserError(NO_SETS)
        check_least(top=(self.top, 1), batch_size=(self.batch_size, 1), workers=(self.workers, 0))


def check_least(**values: tuple[int | None, int]) -> None:
    """Raise `UserError` for an option whose value is below the least one."""
    for name, (value, least) in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a whole number, {least} or more")


def predict(run: str, paths: Sequence[str], options: PredictOptions, rows: Callable[..., Iterable[PredictionRow] | None]) -> int:
    """Print a row for each image, then, on stderr, the number of images without a prediction. Returns that number.

    Where all images lie in sub-folders with the names of classes, these are their labels: the rows have a column `true_label`, and the
    accuracy is printed.

    Args:
        run: folder of a run, or a checkpoint.
        paths: image files, folders of them, csv files with a column of paths or texts.
        options: see `PredictOptions`.
        rows: `rows_of`, or a function with the same arguments; it returns `None` if another process prints the rows.

    Raises:
        UserError: a run that cannot be loaded, a path that does not exist, a coverage that the run has no scores for.
    """
    network = load(run, trust=options.trust)
    network = network if options.prior is None else network.with_prior(options.prior)
    threshold = None
    if options.coverage is not None:
        threshold = threshold_of(network.calibration, options.coverage, multilabel=network.multilabel)
    examples = NamedInputs(paths, network.backbone.input_spec, column=options.column)
    found = rows(network, examples, options.batch_size, options.workers)
    if found is None:
        return 0
    for line in sum_notes(options.prior):
        print(f"ftlit: {line}", file=sys.stderr)
    top = min(options.top, len(network.class_names))
    labels, notes = (None, []) if network.multilabel else labels_by_folder(examples, network.class_names)
    if options.unsure_first:
        found, labels = unsure_first(list(found), None if labels is None else list(labels), multilabel=network.multilabel)
    writer = RowWriter(sys.stdout, options.format, top, threshold, with_distance=network.subspace is not None, true_labels=labels)
    failed = writer.write(found)
    noun = network.backbone.input_spec.noun
    if writer.images:
        known = trained_on(examples, run)
        notes = [describe_errors(writer.images, writer.errors, noun), *([] if known is None else [f"note: {known}"])]
    for line in notes:
        print(f"ftlit: {line}", file=sys.stderr)
    if writer.unlike:
        text = f"{writer.unlike:,} of {len(examples):,} {noun} are unlike the training {noun}: see the columns unlike and distance"
        print(f"ftlit: {text}", file=sys.stderr)
    if options.coverage is not None:
        print(f"ftlit: sets of {options.coverage:.6g} coverage: {writer.describe_sets()}", file=sys.stderr)
    if empty := writer.set_sizes[0]:
        sets, them = ("the set of 1", "it") if empty == 1 else (f"the sets of {empty:,}", "them")
        text = (
            f"{sets} {noun.removesuffix('s') if empty == 1 else noun} {'is' if empty == 1 else 'are'} empty, because no class is probable "
        )
        text += f"enough: look at {them} yourself" + ("" if options.unsure_first else " (--unsure-first prints such rows first)")
        print(f"ftlit: {text}", file=sys.stderr)
    if failed:
        print(
            f"ftlit: {failed} of {len(examples)} {noun} have no prediction: their rows of the output give the reason",
            file=sys.stderr,
        )
    return failed


def rows_of(network: Network, examples: Collection[NamedInput], batch_size: int, workers: int | None) -> Iterator[PredictionRow]:
    """A row for each input, in order; computed on a GPU if there is one."""
    network = on_this_machine(network)
    for batch in input_batches(network, examples, batch_size, workers, "predicting"):
        yield from predict_batch(network, batch)


def on_this_machine(network: Network) -> Network:
    """The network on a GPU if there is one, in the precision that `auto` has there."""
    return network.to("cuda" if torch.cuda.is_available() else "cpu", precision="auto")


def input_batches(
    network: Network, examples: Collection[NamedInput], batch_size: int, workers: int | None, doing: str
) -> Iterator["InputBatch"]:
    """The inputs in batches, in order. A progress bar shows what the caller is doing with them."""
    rest = iter(examples)
    with _progress(len(examples), doing) as advance:
        while part := list(islice(rest, HELD)):
            for batch in loader_of(network, part, batch_size, workers):
                yield batch
                advance(len(batch.names))


class InputBatch(NamedTuple):
    """Inputs that are predicted together.

    Args:
        names: of the rows, in order.
        reasons: of each input, why it cannot be read; empty for one that was read.
        inputs: tensors of those that were read, in order, see `pixels_of`; `None` if none was.
    """

    names: list[str]
    reasons: list[str]
    inputs: Tensor | None


def loader_of(
    network: Network, examples: Sequence[NamedInput], batch_size: int, workers: int | None, processes: int = 1
) -> DataLoader[Any]:
    """Batches of `InputBatch`, for each of `processes` that predict; `workers` as in `PredictOptions`."""
    if workers is None:  # texts are read faster than they are sent
        texts = isinstance(network.backbone.input_spec, TextSpec)
        workers = 0 if texts else default_workers(processes, len(examples) // processes)
    workers = min(workers, -(-len(examples) // batch_size))  # each reads whole batches
    pin = torch.cuda.is_available()
    return DataLoader(Inputs(network, examples), batch_size, num_workers=workers, collate_fn=_collate, pin_memory=pin)


def _collate(read: Sequence[tuple[str, Tensor | str]]) -> InputBatch:
    inputs = [value for _, value in read if isinstance(value, Tensor)]
    reasons = [value if isinstance(value, str) else "" for _, value in read]
    return InputBatch([name for name, _ in read], reasons, in_shared_memory(torch.stack(inputs)) if inputs else None)


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
            return name, pixels_of(example, self.network.backbone.input_spec)
        except BadImage as error:
            missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
            return name, "no such file or folder" if missing else str(error)


def predict_batch(network: Network, batch: InputBatch) -> list[PredictionRow]:
    """The rows of a batch."""
    found: Iterator[Prediction | str] = iter(() if batch.inputs is None else _predictions(network, *network.scored(batch.inputs)))
    return [(name, reason or next(found)) for name, reason in zip(batch.names, batch.reasons, strict=True)]


def _predictions(network: Network, probabilities_NK: Tensor, distances_N: Tensor | None) -> Iterator[Prediction | str]:
    finite = probabilities_NK.isfinite().all(dim=1).cpu()
    predictions = iter(network.predictions(probabilities_NK.cpu()[finite], None if distances_N is None else distances_N.cpu()[finite]))
    return (next(predictions) if good else NOT_FINITE for good in finite.tolist())


@contextmanager
def _progress(total: int, doing: str) -> Iterator[Any]:
    """A progress bar on stderr, if that is a terminal; rows go to stdout."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda done: progress.advance(task, done)
