"""The program `predict.py` beside an exported file: it predicts images without ftlit, on pixels that are prepared as in `ftlit predict`."""

from collections.abc import Iterator
from pathlib import Path

from ftlit.data.bands import UNIT_RATIO
from ftlit.data.input_spec import InputSpec
from ftlit.export.export_formats import ExportFormat
from ftlit.export.images_to_logits import Variant
from ftlit.inference.network import Network


def predict_script(network: Network, export_format: ExportFormat, file: Path, variant: Variant) -> str:
    """The text of the program.

    Args:
        network: that was exported.
        export_format: of the file.
        file: which lies beside the program.
        variant: of the file.
    """
    spec = network.input_spec
    read = _read_bands(spec) if spec.takes_bands else [*_read_picture(spec), *_prepare(spec, variant)]
    if not export_format.normalises:
        read += [f"images = (images - np.float32({[*spec.mean]})[:, None, None]) / np.float32({[*spec.std]})[:, None, None]"]
    suffixes = '{".npy"}' if spec.takes_bands else "Image.registered_extensions()"
    warns = variant.half and "onnxruntime" in export_format.packages  # of each weight of 16 bits that it converts
    quiet = "onnxruntime.set_default_logger_severity(3); " if warns else ""
    packages = " ".join(dict.fromkeys(name.partition(".")[0] for name in (*export_format.packages, "numpy", "pillow")))
    lines = [
        '"""python predict.py IMAGE_OR_FOLDER ...  prints path, class and probability of each image, separated by tabs '
        f'(pip install {packages}). Written by ftlit export."""',
        "import pathlib, signal, sys",
        f"import numpy as np, {', '.join(export_format.packages)}",
        f"from PIL import Image{'' if spec.takes_bands else ', ImageOps'}",
        "",
        'signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # end quietly where nobody reads on, as in `| head`',
        "here = pathlib.Path(__file__).parent",
        'labels = (here / "labels.txt").read_text("utf-8").split("\\n")',
        f"suffixes = {suffixes}",
        "paths = []",
        "for path in map(pathlib.Path, sys.argv[1:]):",
        '    found = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in suffixes) if path.is_dir() else [path]',
        "    paths += found",
        "if not paths:",
        '    sys.exit("usage: python predict.py IMAGE_OR_FOLDER ...  (no image is given, or the folder has none)")',
        quiet + export_format.loading(network, file, f"here / {file.name!r}"),
        "failed = False",
        "for path in paths:",
        "    try:",
        *(f"        {line}" for line in read),
        "    except Exception as error:",
        "        failed = True",
        '        print(f"{path} cannot be read:", *str(error).split(), file=sys.stderr)',
        "        continue",
        *(f"    {line}" for line in (f"logits = {export_format.run}[0]", *_print(network))),
        "sys.exit(failed)",
    ]
    return "\n".join(lines) + "\n"


def _read_picture(spec: InputSpec) -> Iterator[str]:
    """Lines that read a file as `ftlit.data.images` does: a large JPEG at a fraction of its size, upright, on white, greys in 8 bits."""
    at_least = 2 * (spec.resize or spec.size)
    yield f"(image := Image.open(path)).draft(None, ({at_least}, {at_least}))"
    yield "image = ImageOps.exif_transpose(image)"
    if spec.grey_range is not None:  # else no training image has greys of more than 8 bits
        black, white = spec.grey_range
        yield 'if image.mode[0] in "IF":  # greys of more than 8 bits'
        yield f"    greys = (np.array(image, float).clip({black:g}, {white:g}) - {black:g}) * {255 / (white - black):.12g}"
        yield "    image = Image.fromarray(greys.round().astype(np.uint8))"
    yield 'image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")'


def _prepare(spec: InputSpec, variant: Variant) -> Iterator[str]:
    """Lines that resize and crop it, unless the file does, and make it an array."""
    if variant.preprocessing:
        yield "images = np.array(image).transpose(2, 0, 1)[None]"
        return
    yield f"image = {_resized('image', spec)}"
    yield f"left, top = (round((side - {spec.size}) / 2) for side in image.size)"
    to_grey, shape = ('.convert("L")', "[None, None]") if spec.channels == 1 else ("", ".transpose(2, 0, 1)[None]")
    yield f"image = image.crop((left, top, left + {spec.size}, top + {spec.size})){to_grey}"
    yield f"images = np.array(image, np.float32){shape} / 255"


def _read_bands(spec: InputSpec) -> list[str]:
    """Lines that read an array of bands, and resize and crop each."""
    return [
        "bands = np.load(path)",
        f"bands = np.moveaxis(bands, 2, 0) if bands.shape[2] == {spec.channels} else bands",
        *_check_units(spec),
        "bands = (bands / (255 if bands.dtype == np.uint8 else 1)).astype(np.float32)",
        f"planes = [{_resized('plane', spec)} for plane in map(Image.fromarray, np.ascontiguousarray(bands))]",
        f"left, top = (round((side - {spec.size}) / 2) for side in planes[0].size)",
        f"images = np.stack([np.array(plane.crop((left, top, left + {spec.size}, top + {spec.size}))) for plane in planes])[None]",
    ]


def _check_units(spec: InputSpec) -> Iterator[str]:
    """A line that warns as `ftlit.data.bands.other_units` does, by the type of the values."""
    if max(spec.mean) >= UNIT_RATIO:
        yield 'if bands.dtype == np.uint8: print(f"warning: {path} has 8 bits, other than the training images", file=sys.stderr)'
    elif max(spec.mean) <= 1:
        yield f"if bands.max() >= {UNIT_RATIO} and bands.dtype != np.uint8:"
        yield '    print(f"warning: {path} has larger values than the training images", file=sys.stderr)'


def _resized(name: str, spec: InputSpec) -> str:
    size, mode = spec.resize or spec.size, spec.interpolation.removesuffix("-exact").upper()
    return f"{name}.resize([{size} * side // min({name}.size) for side in {name}.size], Image.Resampling.{mode})"


def _print(network: Network) -> Iterator[str]:
    if network.multilabel:
        yield "probabilities = 1 / (1 + np.exp(-logits))"
    else:
        yield "probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()"
    yield 'print(path, labels[probabilities.argmax()], f"{probabilities.max():.4f}", sep="\\t")'
