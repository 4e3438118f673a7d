"""Export a run's network to a file that needs no ftlit, and check it: the file and the run give the same logits of random images."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import torch

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.export.export_formats import EXPORT_FORMATS, ExportFormat, ImagesToLogits, ImagesToLogitsFunction, Metadata, random_images
from ftlit.files import scratch_folder
from ftlit.formats import with_format
from ftlit.formatting import printable
from ftlit.inference.load_network import load
from ftlit.inference.network import Network

BAND_VALUES = "8-bit values divided by 255 and others as in the files"
TOLERANCE = 1e-4  # of the largest logit
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_run(run: str | Path, to: str, out: str | Path | None = None, *, trust: bool = False) -> tuple[Path, str]:
    """Export the network of a run at its best epoch, or of one of its checkpoints.

    Args:
        run: its folder, or a checkpoint in it.
        to: `torchvision`, `torch` or `onnx`; see `export`.
        out: the file; by default `export/<name of the network>` in the run's folder, or beside a checkpoint that lies elsewhere.
        trust: see `ftlit.load`.

    Returns:
        The file, and in three lines how a program loads it, how it reads the names of the classes in their order, and what images it takes.

    Raises:
        UserError: not a run of images; and see `export`.
    """
    export_format = _format_of(to, out)
    network = load(run, trust=trust)
    name = re.sub(r"[^\w.-]", "_", str((network.backbone.record or {}).get("name", "network")))
    path = _folder_of(run) / "export" / f"{name}{export_format.suffixes[0]}" if out is None else Path(out).expanduser()
    export(network, to, path)
    classes = f"classes: {shorten(map(printable, network.class_names))}, in the order of the logits; {export_format.class_names(path)}"
    return path, f"{export_format.usage(network, path)}\n{classes}\nimages: {_metadata(network, export_format)['images']}"


def export(network: Network, to: str, path: str | Path) -> Path:
    """Write a network to a file that needs no ftlit, atomically and checked. The file holds input spec, class names and `multilabel` too.

    Args:
        network: of images, in evaluation mode.
        to: `torchvision`, the state dict by torchvision's own names (.safetensors, or .pth with a .json beside it). It loads with
            `strict=True` into the network that torchvision builds with this number of classes and the arguments of the run's backbone,
            without auxiliary heads. `torch`, an archive of torch.export (.pt2), and `onnx` take images in [0, 1], any
            number at once, and normalise them.
        path: of the file. Folders are created, an existing file is replaced.

    Returns:
        The path.

    Raises:
        UserError: an unknown format, a network of texts, a network that the format cannot hold exactly, a missing package, or a file that
            cannot be written.
    """
    export_format, target = _format_of(to, path), Path(path)
    if not isinstance(network.backbone.input_spec, InputSpec):
        raise UserError("this network takes texts, but only networks for images can be exported")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent, ".export-") as beside:
            written = beside / target.name
            export_format.write(network, _metadata(network, export_format), written)
            _check(network, export_format.read(network, written), to)
            _move(written, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {one_line(error)}") from error
    return target


def _format_of(to: str, path: str | Path | None) -> ExportFormat:
    if to not in EXPORT_FORMATS:
        raise unknown("export format", to, EXPORT_FORMATS)
    suffixes = EXPORT_FORMATS[to].suffixes
    if path is not None and Path(path).suffix not in suffixes:
        raise UserError(f"--to {to} writes files that end in {' or '.join(suffixes)}, not {str(path)!r}: give another name with --out")
    if to == "onnx" and (missing := [package for package in ONNX_PACKAGES if find_spec(package) is None]):
        raise UserError(f'--to onnx needs {" and ".join(missing)}: pip install "ftlit[onnx]"')
    return EXPORT_FORMATS[to]


def _folder_of(run: str | Path) -> Path:
    """The folder of the run, or of a checkpoint outside a run."""
    given = Path(run).expanduser()
    if not given.is_file():
        return given
    folder = given.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _metadata(network: Network, export_format: ExportFormat) -> Metadata:
    spec = network.input_spec
    shape = ", ".join(map(str, ("N", *spec.shape)))
    values = {1: f"grey ({shape}) in [0, 1]", 3: f"RGB ({shape}) in [0, 1]"}.get(spec.channels, f"bands ({shape}), {BAND_VALUES}")
    images = f"float32 {values}: {spec.preparation}; {spec.normalisation}, {export_format.normalised}"
    classes = {"class_names": list(network.class_names), "multilabel": network.multilabel}
    return with_format({"input_spec": spec.to_dict(), **classes, "images": images})


def _check(network: Network, logits: ImagesToLogitsFunction, to: str) -> None:
    """Raise `UserError` where the logits of the file differ from those of the run."""
    for count in (1, 3):
        images = random_images(network, count)
        with torch.inference_mode():
            expected, exported = ImagesToLogits(network)(images), logits(images)
        difference = (exported - expected).abs().max() if exported.shape == expected.shape else torch.inf
        if not difference <= TOLERANCE * expected.abs().max():  # true for NaN too
            others = " or ".join(f"--to {other}" for other in EXPORT_FORMATS if other != to)
            raise UserError(
                f"nothing was written, because --to {to} changes the logits by {difference:.1e}, which is too much: try {others}"
            )


def _move(written: Path, target: Path) -> None:
    """Move a file and those written beside it; the named file comes last."""
    others = [file for file in written.parent.iterdir() if file != written]
    if taken := [file.name for file in others if (target.parent / file.name).exists() and not target.exists()]:
        raise UserError(f"writing {target} would replace the existing file {taken[0]}: give another --out")
    for file in [*others, written]:
        with file.open("rb") as content:
            os.fsync(content.fileno())
        file.replace(target.parent / file.name)
