"""The command `ftlit embed`: the features of each image or text, in one file."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from torch import Tensor, nn

from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, invalid
from ftlit.files import replacing
from ftlit.formatting import count, printable
from ftlit.inference.network import Network
from ftlit.inference.network_inputs import NamedInputs
from ftlit.inference.predict import check_least, input_batches, on_this_machine
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import POOLINGS, Pooling, pool, pooled_size, poolings_of

NOT_FINITE = (
    "the network gives features that are not finite numbers, because the weights are damaged or training diverged: "
    "restore the checkpoint from a copy, or train again with a lower optimizer.lr"
)
ROWS = 4096  # features or names that are written together
Array = np.ndarray[Any, Any]
Write = Callable[[Sequence[str], Array], None]  # names (n,) and features (n, C) float32 of the next inputs


@dataclass(frozen=True)
class EmbedOptions:
    """Options of `ftlit embed`.

    Args:
        out: file to write, `.npz` or `.parquet`.
        cut: name of the layer whose features are written; `None`: the last one of the network.
        pooling: see `ftlit.models.pooling.pool`.
        batch_size: number of inputs that run together.
        workers: number of processes that read images; `None`: see `default_workers`.
        column: of csv files; `None`: `path`, or `text` of texts.

    Raises:
        UserError: an unknown format or pooling, or pyarrow is missing.
    """

    out: str
    cut: str | None = None
    pooling: Pooling = "average"
    batch_size: int = 64
    workers: int | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        if self.suffix not in WRITERS:
            raise UserError(f"--out {self.out}: give a file that ends with {' or '.join(WRITERS)}")
        if self.suffix == ".parquet":
            _parquet()
        if self.pooling not in POOLINGS:
            raise invalid("pooling", self.pooling, POOLINGS)
        check_least(batch_size=(self.batch_size, 1), workers=(self.workers, 0))

    @property
    def suffix(self) -> str:
        """End of the file's name, in lower case."""
        return Path(self.out).suffix.lower()


class _Pooled(nn.Module):
    """In place of a head: features as they come out -> vectors."""

    takes_map = True

    def __init__(self, backbone: Backbone, pooling: Pooling) -> None:
        super().__init__()
        self.token_pool, self.pooling = backbone.token_pool, pooling

    def forward(self, features: Tensor) -> Tensor:
        """Vectors (N, C)."""
        return pool(features, self.token_pool, self.pooling)


def network_of(backbone: Backbone) -> Network:
    """A backbone as `embed` takes it."""
    return Network(backbone, nn.Identity(), (), multilabel=False)


def embed(network: Network, paths: Sequence[str], options: EmbedOptions) -> int:
    """Write the pooled features of each input in the order given. Memory does not grow with their number, except by their names.

    A text is its own name; in an `.npz` file its name is its number among the inputs, from 0.

    An input that cannot be read has no row in the file; on stderr is a line for each with the reason.

    Args:
        network: of a run, or from `network_of`.
        paths: as `ftlit.inference.network_inputs.NamedInputs` takes them.
        options: see `EmbedOptions`.

    Returns:
        The number of inputs without features.

    Raises:
        UserError: no such layer, a pooling that does not apply to it, no input that can be read, or a file that cannot be written.
    """
    backbone = network.backbone if options.cut is None else network.backbone.upto(options.cut)
    cut, spec, shape = backbone.cuts[-1], backbone.input_spec, backbone.feature_shapes[backbone.cuts[-1]]
    if options.pooling not in (supported := poolings_of(shape)):
        raise UserError(f"--pooling {options.pooling} does not apply to the features of {cut}: give {' or '.join(supported)}")
    network = on_this_machine(replace(network, backbone=backbone, head=_Pooled(backbone, options.pooling)))
    examples = NamedInputs(paths, spec, column=options.column)
    width, failed, done = pooled_size(shape, network.backbone.token_pool, options.pooling), 0, 0
    numbered = (
        isinstance(spec, TextSpec) and options.suffix == ".npz"
    )  # each element of numpy's array of texts takes the space of the longest
    with WRITERS[options.suffix](Path(options.out).expanduser(), width) as write:
        for batch in input_batches(network, examples, options.batch_size, options.workers, "embedding"):
            names, reasons = batch.names, dict(enumerate(batch.reasons))
            read = [place for place, reason in reasons.items() if not reason]
            if batch.inputs is not None:
                features = network.logits(batch.inputs).float().cpu()
                finite = features.isfinite().all(dim=1)
                reasons |= {place: NOT_FINITE for place, good in zip(read, finite.tolist(), strict=True) if not good}
                kept = [place for place in read if not reasons[place]]
                write([str(done + place) if numbered else names[place] for place in kept], features[finite].numpy())
            done += len(names)
            for name, reason in zip(names, reasons.values(), strict=True):
                if reason:
                    failed += 1
                    print(f"ftlit: {printable(name)}: {reason}", file=sys.stderr)
        if failed == len(examples):
            raise UserError(
                f"{options.out} was not written, because none of the {spec.noun} can be used: correct the {spec.noun} named above"
            )
    print(f"{len(examples) - failed:,} {spec.noun}, {count(width, 'feature')} each at {cut}: {options.out}", flush=True)
    if failed:
        print(f"ftlit: {failed} of {len(examples)} {spec.noun} have no features, and no row in {options.out}", file=sys.stderr)
    return failed


@contextmanager
def _npz(path: Path, width: int) -> Iterator[Write]:
    """Write `names` (N,) and `features` (N, C) as numpy reads them. Until N is known, the features are in an unnamed file beside it."""
    names: list[str] = []
    with replacing(path) as file, TemporaryFile(dir=path.parent) as rows:

        def write(new: Sequence[str], features: Array) -> None:
            names.extend(map(printable, new))
            rows.write(np.ascontiguousarray(features, "<f4").tobytes())

        yield write
        rows.seek(0)
        with ZipFile(file, "w") as archive:
            with _member(archive, "features", ZIP_STORED) as member:
                _write_header(member, "<f4", (len(names), width))
                shutil.copyfileobj(rows, member, 1 << 20)
            kind = f"<U{max(map(len, names), default=1) or 1}"
            with _member(archive, "names", ZIP_DEFLATED) as member:  # each takes the space of the longest, mostly zeros
                _write_header(member, kind, (len(names),))
                for begin in range(0, len(names), ROWS):
                    member.write(np.array(names[begin : begin + ROWS], kind).tobytes())


def _member(archive: ZipFile, name: str, compression: int) -> IO[bytes]:
    info = ZipInfo(f"{name}.npy")  # with a fixed date: equal content gives equal files
    info.compress_type = compression
    return archive.open(info, "w", force_zip64=True)


def _write_header(file: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


@contextmanager
def _parquet_file(path: Path, width: int) -> Iterator[Write]:
    """Write the columns `name` and `features`, a list of C numbers."""
    arrow, parquet = _parquet()
    schema = arrow.schema([("name", arrow.string()), ("features", arrow.list_(arrow.float32(), width))])
    waiting: list[tuple[Sequence[str], Array]] = []
    with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            names = [printable(name) for part, _ in waiting for name in part]
            values = np.concatenate([features for _, features in waiting]).ravel()
            columns = [arrow.array(names, arrow.string()), arrow.FixedSizeListArray.from_arrays(arrow.array(values), width)]
            writer.write_table(arrow.table(columns, schema=schema))
            waiting.clear()

        def write(new: Sequence[str], features: Array) -> None:
            waiting.append((new, features))
            if sum(len(part) for part, _ in waiting) >= ROWS:
                flush()

        yield write
        if waiting:
            flush()


def _parquet() -> tuple[Any, Any]:
    """The package that writes parquet. Raises `UserError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError('a .parquet file needs pyarrow: pip install "ftlit[parquet]", or give --out with a .npz file') from error
    return pyarrow, pyarrow.parquet


WRITERS = {".npz": _npz, ".parquet": _parquet_file}
