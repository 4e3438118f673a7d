"""The formats of `ftlit export`: each writes a file, reads it back, and has the code by which a program without ftlit uses the file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ftlit.export.images_to_logits import Variant
from ftlit.export.original_state import Library, builder
from ftlit.export.program_files import ImagesToLogitsFunction, Metadata, read_onnx, read_torch, write_onnx, write_torch
from ftlit.export.state_files import class_names_of, loading_of, reader_for, writer_for
from ftlit.inference.network import Network


@dataclass(frozen=True)
class ExportFormat:
    """A file format that networks are exported to.

    Args:
        suffixes: of its files; the first one is the default.
        write: writes the network and its metadata to a file.
        read: reads a file as a function from the images of its variant to logits.
        loading: code that loads a file into `model`: of the network, the path, and how the code writes the path.
        run: code of the logits (N, K), as an array or tensor, of the array `images`, with `model`.
        class_names: code that reads the names of the classes.
        packages: that a program which loads a file needs, besides those that read images, and as they are imported.
        normalises: whether the file normalises images.
        least_agreement: share of photos for which a file that prepares images itself names the class that `ftlit predict` names, at least;
            `None` for a format that cannot hold the preparation.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Network, Metadata, Path, Variant], None]
    read: Callable[[Network, Path], ImagesToLogitsFunction]
    loading: Callable[[Network, Path, str], str]
    run: str
    class_names: Callable[[Path], str]
    packages: tuple[str, ...]
    normalises: bool = True
    least_agreement: float | None = None


def _load_torch(network: Network, path: Path, shown: str) -> str:
    return f"model = torch.export.load({shown}).module()"


def _names_in_torch(path: Path) -> str:
    load = f"torch.export.load({str(path)!r}, extra_files=extra)"
    return f"extra = {{'class_names': ''}}; {load}; class_names = json.loads(extra['class_names'])"


def _load_onnx(network: Network, path: Path, shown: str) -> str:
    return f"model = onnxruntime.InferenceSession({shown})"


def _names_in_onnx(path: Path) -> str:
    metadata = f"onnxruntime.InferenceSession({str(path)!r}).get_modelmeta().custom_metadata_map"
    return f"class_names = json.loads({metadata}['class_names'])"


def _load_state(network: Network, path: Path, shown: str, *, library: Library) -> str:
    name, arguments = builder(network, library)
    call = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in arguments.items())])
    build = "torchvision.models.get_model" if library == "torchvision" else "timm.create_model"
    return f"model = {build}({call}).eval(); model.load_state_dict({loading_of(path, shown)})"


RUN_MODULE, RUN_SESSION = "model(torch.from_numpy(images)).numpy(force=True)", 'model.run(["logits"], {"images": images})[0]'

LIBRARIES: tuple[Library, ...] = ("torchvision", "timm")

EXPORT_FORMATS: dict[str, ExportFormat] = {
    **{
        library: ExportFormat(
            (".safetensors", ".pth"),
            writer_for(library),
            reader_for(library),
            partial(_load_state, library=library),
            RUN_MODULE,
            class_names_of,
            ("torch", library, "safetensors.torch"),
            normalises=False,
        )
        for library in LIBRARIES
    },
    "torch": ExportFormat((".pt2",), write_torch, read_torch, _load_torch, RUN_MODULE, _names_in_torch, ("torch",), least_agreement=0.99),
    "onnx": ExportFormat(
        (".onnx",), write_onnx, read_onnx, _load_onnx, RUN_SESSION, _names_in_onnx, ("onnxruntime",), least_agreement=0.98
    ),
}
