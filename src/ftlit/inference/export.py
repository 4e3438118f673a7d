"""A run's network for programs that do not know ftlit: torchvision's own state dict, an archive of torch.export, or ONNX.

What is written is checked before it gets its name: the file's network and the run's give the same logits of random images.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line, unknown
from ftlit.inference.network import Network, load
from ftlit.inference.torchvision_state import builder, built, original_state
from ftlit.models.heads import logits_of

TOLERANCE = 1e-4  # of the largest logit
RUNTIME = ("onnx", "onnxscript", "onnxruntime")

Facts = Mapping[str, Any]
Logits = Callable[[Tensor], Tensor]


class ImagesToLogits(nn.Module):
    """RGB images (N, 3, size, size) in [0, 1] -> logits (N, K): a run's normalisation, backbone and head in one module.

    Args:
        network: of images; its modules are shared, not copied.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        self.mean: Tensor
        self.std: Tensor
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(network.input_spec, name))[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return logits_of(self.head, self.backbone((images - self.mean) / self.std), self.backbone.pool)


@dataclass(frozen=True)
class Form:
    """What a network can be exported to.

    Args:
        suffixes: that a file of it may have; the first one by default.
        write: puts the network, and facts about it, into a file.
        read: a file -> what it says of images in [0, 1].
        usage: how a program loads a file, in a line.
        normalised: where images are.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Network, Facts, Path], None]
    read: Callable[[Network, Path], Logits]
    usage: Callable[[Network, Path], str]
    normalised: str


def export_run(run: str | Path, to: str, out: str | Path | None = None) -> tuple[Path, str]:
    """Export the network of a run's best epoch, or of one of its checkpoints.

    Args:
        run: its folder, or a checkpoint in it.
        to: `torchvision`, `torch` or `onnx`; see `export`.
        out: the file; by default `export/<name of the network>` in the run's folder, or beside a checkpoint that lies elsewhere.

    Returns:
        The file, and in two lines how a program loads it and what images it takes.

    Raises:
        UserError: no run of images, or see `export`.
    """
    form = _form(to, out)
    network = load(run)
    name = re.sub(r"[^\w.-]", "_", str((network.backbone.record or {}).get("name", "network")))
    path = _folder_of(run) / "export" / f"{name}{form.suffixes[0]}" if out is None else Path(out).expanduser()
    export(network, to, path)
    return path, f"{form.usage(network, path)}\nimages: {_facts(network, form)['images']}"


def export(network: Network, to: str, path: str | Path) -> Path:
    """Write a network to a file that needs no ftlit, whole and checked or not at all. Input spec, class names and `multilabel` lie inside.

    Args:
        network: of images, in evaluation mode.
        to: `torchvision`, the state dict by torchvision's own names (.safetensors, or .pth with a .json beside it). It loads with
            `strict=True` into the network that torchvision builds with these classes and the arguments that the run's backbone has, without
            auxiliary heads, since a run has none. `torch`, an archive of torch.export (.pt2), and `onnx` take images in [0, 1], any
            number at once, and normalise them.
        path: of the file. Folders are made, a file of this name is replaced.

    Returns:
        The path.

    Raises:
        UserError: an unknown form, a network of texts, one that the form cannot hold exactly, a missing package, or a file that cannot
            be written.
    """
    form, target = _form(to, path), Path(path)
    if not isinstance(network.backbone.input_spec, InputSpec):
        raise UserError("this network takes texts, and networks of images are what can be exported")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix=".export") as beside:
            written = Path(beside, target.name)
            form.write(network, _facts(network, form), written)
            _check(network, form.read(network, written), to)
            _move(written, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {one_line(error)}") from error
    return target


def _form(to: str, path: str | Path | None) -> Form:
    if to not in FORMS:
        raise unknown("form to export to,", to, FORMS)
    suffixes = FORMS[to].suffixes
    if path is not None and Path(path).suffix not in suffixes:
        raise UserError(f"{path}: a file of --to {to} is called {' or '.join(f'*{suffix}' for suffix in suffixes)}")
    if to == "onnx" and (missing := [package for package in RUNTIME if find_spec(package) is None]):
        raise UserError(f'--to onnx needs {" and ".join(missing)}: pip install "ftlit[onnx]"')
    return FORMS[to]


def _folder_of(run: str | Path) -> Path:
    """Of the run, or of a checkpoint that lies in no run."""
    given = Path(run).expanduser()
    if not given.is_file():
        return given
    folder = given.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _facts(network: Network, form: Form) -> Facts:
    spec = network.input_spec
    images = f"float32 RGB ({', '.join(map(str, ('N', *spec.shape)))}) in [0, 1], normalised {form.normalised}"
    return {"input_spec": asdict(spec), "class_names": list(network.class_names), "multilabel": network.multilabel, "images": images}


def _json(facts: Facts) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


def _images(network: Network, count: int) -> Tensor:
    return torch.rand(count, *network.input_spec.shape, generator=torch.Generator().manual_seed(count))


def _check(network: Network, logits: Logits, to: str) -> None:
    for count in (1, 3):
        images = _images(network, count)
        with torch.inference_mode():
            wanted, given = ImagesToLogits(network)(images), logits(images)
        apart = (given - wanted).abs().max() if given.shape == wanted.shape else torch.inf
        if not apart <= TOLERANCE * wanted.abs().max():  # nor NaN
            others = " or ".join(f"--to {other}" for other in FORMS if other != to)
            raise UserError(f"--to {to} does not give the logits of the run (apart by {apart:.1e}): try {others}")


def _move(written: Path, target: Path) -> None:
    """With what was written beside it; the named file comes last."""
    others = [file for file in written.parent.iterdir() if file != written]
    if taken := [file.name for file in others if (target.parent / file.name).exists() and not target.exists()]:
        raise UserError(f"{target} comes with {taken[0]}, and there is one of something else: give another --out")
    for file in [*others, written]:
        file.replace(target.parent / file.name)


def _write_torchvision(network: Network, facts: Facts, path: Path) -> None:
    state = original_state(network)
    if path.suffix == ".pth":
        path.with_suffix(".json").write_text(json.dumps(facts, ensure_ascii=False, indent=1))
        torch.save(state, path)
    else:
        save_file(state, path, _json(facts))


def _read_torchvision(network: Network, path: Path) -> Logits:
    model, spec = built(network), network.input_spec
    model.load_state_dict(torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path))
    return lambda images: model(normalize(images, list(spec.mean), list(spec.std)))


def _use_torchvision(network: Network, path: Path) -> str:
    name, arguments = builder(network)
    call = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in arguments.items())])
    load = f"torch.load({str(path)!r})" if path.suffix == ".pth" else f"safetensors.torch.load_file({str(path)!r})"
    return f"model = torchvision.models.get_model({call}); model.load_state_dict({load})"


def _program(network: Network) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad():
            return torch.export.export(ImagesToLogits(network), (_images(network, 2),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # code that cannot be traced raises nearly anything
        raise UserError(f"torch.export cannot follow this network: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _write_torch(network: Network, facts: Facts, path: Path) -> None:
    torch.export.save(_program(network), path, extra_files=_json(facts))


def _read_torch(network: Network, path: Path) -> Logits:
    return torch.export.load(path).module()


def _use_torch(network: Network, path: Path) -> str:
    return f"logits = torch.export.load({str(path)!r}).module()(images)"


def _write_onnx(network: Network, facts: Facts, path: Path) -> None:
    program = _program(network)
    try:
        onnx: Any = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    except Exception as error:  # likewise
        raise UserError(f"ONNX cannot hold this network: {_first_line(error)}; --to torch can") from error
    onnx.model.metadata_props.update(_json(facts))
    onnx.save(path)


def _read_onnx(network: Network, path: Path) -> Logits:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _use_onnx(network: Network, path: Path) -> str:
    return f'logits, = onnxruntime.InferenceSession({str(path)!r}).run(["logits"], {{"images": images}})'


FORMS = {
    "torchvision": Form((".safetensors", ".pth"), _write_torchvision, _read_torchvision, _use_torchvision, "outside, by input_spec"),
    "torch": Form((".pt2",), _write_torch, _read_torch, _use_torch, "inside"),
    "onnx": Form((".onnx",), _write_onnx, _read_onnx, _use_onnx, "inside"),
}
