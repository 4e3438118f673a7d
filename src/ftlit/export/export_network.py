"""Export a network to a file that needs no ftlit, and check it: the file and the network give the same logits of random images."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, unknown
from ftlit.export.export_formats import EXPORT_FORMATS, ExportFormat
from ftlit.export.images_to_logits import ImagesToLogits, Variant, random_images
from ftlit.export.preparation import Preparation
from ftlit.export.program_files import ImagesToLogitsFunction, Metadata
from ftlit.files import scratch_folder, write_error
from ftlit.formats import with_format
from ftlit.inference.network import Network

BAND_VALUES = "8-bit values divided by 255 and others as in the files"
TOLERANCE = 1e-4  # of the largest logit
WIDE_TOLERANCE = 1e-2  # of weights in float16, and where pixels are rounded within the file
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Beside = Callable[[Path, Path, ImagesToLogitsFunction], None]


def export(network: Network, to: str, path: str | Path, variant: Variant | None = None, beside: Beside | None = None) -> Path:
    """Write a network to a file that needs no ftlit, atomically and checked. The file holds input spec, class names and `multilabel` too.

    Args:
        network: of images.
        to: `torchvision` or `timm`, the state dict by the names of this library (.safetensors, or .pth with a .json beside it). It loads
            with `strict=True` into the network that the library builds with this number of classes and the arguments of the run's
            backbone, without auxiliary heads. `torch`, an archive of torch.export (.pt2), and `onnx` take images in [0, 1], any
            number at once, and normalise them.
        path: of the file. Folders are created, an existing file is replaced.
        variant: options of the file.
        beside: writes further files into the folder of its second argument, the file; its first one is the path that the file will
            have, its third one gives the logits of the file. They are put in place together with the file.

    Returns:
        The path.

    Raises:
        UserError: an unknown format, a network of texts, a network that the format cannot hold exactly, a missing package, or a file that
            cannot be written.
    """
    export_format, target, variant = format_of(to, path), Path(path), variant or Variant()
    if not isinstance(network.backbone.input_spec, InputSpec):
        raise UserError("this network takes texts, but ftlit export supports only networks of images: give a run on images")
    if variant.preprocessing:
        if export_format.least_agreement is None:
            raise UserError(f"--to {to} writes weights only, which cannot prepare images: leave --with-preprocessing out, or use --to onnx")
        Preparation(network.input_spec)  # raises for other images, before seconds of work
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent, ".export-") as folder:
            written = folder / target.name
            export_format.write(network, metadata_of(network, export_format, variant), written, variant)
            logits = export_format.read(network, written)
            _check(network, logits, to, variant)
            if beside is not None:
                beside(target, written, logits)
            _move(written, target)
    except OSError as error:
        raise write_error(target, error) from error
    return target


def format_of(to: str, path: str | Path | None) -> ExportFormat:
    """The format of this name. Raises `UserError` for an unknown one, a path that it does not write, or a missing package."""
    if to not in EXPORT_FORMATS:
        raise unknown("export format", to, EXPORT_FORMATS)
    suffixes = EXPORT_FORMATS[to].suffixes
    if path is not None and Path(path).suffix not in suffixes:
        raise UserError(f"--to {to} writes files that end in {' or '.join(suffixes)}, not {str(path)!r}: give another name with --out")
    if to == "onnx" and (missing := [package for package in ONNX_PACKAGES if find_spec(package) is None]):
        raise UserError(f'--to onnx needs {" and ".join(missing)}: pip install "ftlit[onnx]"')
    return EXPORT_FORMATS[to]


def metadata_of(network: Network, export_format: ExportFormat, variant: Variant) -> Metadata:
    """What a file holds besides the network: input spec, class names, and how images are prepared for it, as text."""
    spec = network.input_spec
    shape = ", ".join(map(str, ("N", *spec.shape)))
    if variant.preprocessing:
        images = f"uint8 RGB (N, 3, H, W), 0 to 255, of any size: {spec.preparation} and normalisation are done inside"
    else:
        values = {1: f"grey ({shape}) in [0, 1]", 3: f"RGB ({shape}) in [0, 1]"}.get(spec.channels, f"bands ({shape}), {BAND_VALUES}")
        where = "normalised inside" if export_format.normalises else "not normalised inside"
        images = f"float32 {values}: {spec.preparation}; {spec.normalisation}, {where}"
    classes = {"class_names": list(network.class_names), "multilabel": network.multilabel}
    return with_format({"input_spec": spec.to_dict(), **classes, "images": images})


def _check(network: Network, logits: ImagesToLogitsFunction, to: str, variant: Variant) -> None:
    """Raise `UserError` where the logits of the file differ from those of the run."""
    module = ImagesToLogits(network, preprocessing=variant.preprocessing)
    tolerance = WIDE_TOLERANCE if variant.half or variant.preprocessing else TOLERANCE
    for count in (1, 3):
        images = random_images(network, count, variant)
        with torch.inference_mode():
            expected, exported = module(images), logits(images)
        difference = (exported - expected).abs().max() if exported.shape == expected.shape else torch.inf
        if not difference <= tolerance * expected.abs().max():  # true for NaN too
            others = " or ".join(f"--to {other}" for other in EXPORT_FORMATS if other != to)
            ways = f"leave --half out, or try {others}" if variant.half else f"try {others}"
            raise UserError(f"nothing was written, because --to {to} changes the logits by {difference:.1e}, which is too much: {ways}")


def _move(written: Path, target: Path) -> None:
    """Move a file and those written beside it; the named file comes last."""
    others = [file for file in written.parent.iterdir() if file != written]
    paired = written.with_suffix(".json")  # of a .pth file
    if paired in others and (target.parent / paired.name).exists() and not target.exists():
        beside = target.parent / paired.name
        raise UserError(f"the export writes {paired.name} beside {target.name}, but {beside} exists already: give another --out")
    for file in [*others, written]:
        with file.open("rb") as content:
            os.fsync(content.fileno())
        file.replace(target.parent / file.name)
