"""The formats of `ftlit export`: torchvision's state dict, an archive of torch.export, and ONNX; each writes a file and reads it back."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ftlit.errors import UserError
from ftlit.export.torchvision_state import builder, built, original_state
from ftlit.inference.network import Network
from ftlit.models.heads import features_for, logits_of

Metadata = Mapping[str, Any]
ImagesToLogitsFunction = Callable[[Tensor], Tensor]


class ImagesToLogits(nn.Module):
    """Images (N, C, size, size), RGB or grey in [0, 1], or bands -> logits (N, K): normalisation, backbone and head of a run in one module.

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
        """Logits (N, K)."""
        return logits_of(self.head, features_for(self.head, self.backbone, (images - self.mean) / self.std))


@dataclass(frozen=True)
class ExportFormat:
    """A file format that networks are exported to.

    Args:
        suffixes: of its files; the first one is the default.
        write: writes the network and its metadata to a file.
        read: reads a file as a function from images in [0, 1] to logits.
        usage: how a program loads a file, in one line.
        class_names: how a program reads the names of the classes, in one line.
        normalised: whether the file normalises images, as text.
    """

    suffixes: tuple[str, ...]
    write: Callable[[Network, Metadata, Path], None]
    read: Callable[[Network, Path], ImagesToLogitsFunction]
    usage: Callable[[Network, Path], str]
    class_names: Callable[[Path], str]
    normalised: str


def random_images(network: Network, count: int) -> Tensor:
    """(count, C, S, S), the same at every call: in [0, 1], of bands within two standard deviations of their means."""
    spec = network.input_spec
    images = torch.rand(count, *spec.shape, generator=torch.Generator().manual_seed(count))
    if not spec.takes_bands:
        return images
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    return mean + std * (4 * images - 2)


def _as_json(metadata: Metadata) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}


def _write_torchvision(network: Network, metadata: Metadata, path: Path) -> None:
    state = original_state(network)
    if path.suffix == ".pth":
        path.with_suffix(".json").write_text(json.dumps(metadata, ensure_ascii=False, indent=1))
        torch.save(state, path)
    else:
        save_file(state, path, _as_json(metadata))


def _read_torchvision(network: Network, path: Path) -> ImagesToLogitsFunction:
    model, spec = built(network), network.input_spec
    model.load_state_dict(torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path))
    return lambda images: model(normalize(images, list(spec.mean), list(spec.std)))


def _use_torchvision(network: Network, path: Path) -> str:
    name, arguments = builder(network)
    call = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in arguments.items())])
    load = f"torch.load({str(path)!r})" if path.suffix == ".pth" else f"safetensors.torch.load_file({str(path)!r})"
    return f"model = torchvision.models.get_model({call}); model.load_state_dict({load})"


def _names_in_torchvision(path: Path) -> str:
    if path.suffix == ".pth":
        return f"class_names = json.load(open({str(path.with_suffix('.json'))!r}))['class_names']"
    return f"class_names = json.loads(safetensors.safe_open({str(path)!r}, 'pt').metadata()['class_names'])"


def _program(network: Network) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad():
            return torch.export.export(ImagesToLogits(network), (random_images(network, 2),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # code that cannot be traced raises almost any error
        raise UserError(
            f"torch.export, which --to torch and onnx use, cannot export this network ({_first_line(error)}): change the part whose code "
            "depends on the values of its input, or export another network"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _write_torch(network: Network, metadata: Metadata, path: Path) -> None:
    with warnings.catch_warnings():  # torch's own, on weights that share their memory; the file is read again and compared
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(_program(network), path, extra_files=_as_json(metadata))


def _read_torch(network: Network, path: Path) -> ImagesToLogitsFunction:
    return torch.export.load(path).module()


def _use_torch(network: Network, path: Path) -> str:
    return f"logits = torch.export.load({str(path)!r}).module()(images)"


def _names_in_torch(path: Path) -> str:
    load = f"torch.export.load({str(path)!r}, extra_files=extra)"
    return f"extra = {{'class_names': ''}}; {load}; class_names = json.loads(extra['class_names'])"


@contextmanager
def _unfused_attention(backbone: nn.Module) -> Iterator[None]:
    """Let timm's attention run as matrix products: the converter does not take every form of the fused one (a mask, five dimensions)."""
    fused: list[Any] = [module for module in backbone.modules() if getattr(module, "fused_attn", False)]
    try:
        for module in fused:
            module.fused_attn = False
        yield
    finally:
        for module in fused:
            module.fused_attn = True


def _write_onnx(network: Network, metadata: Metadata, path: Path) -> None:
    with _unfused_attention(network.backbone):
        program = _program(network)
    try:
        onnx: Any = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False)
    except Exception as error:  # as above
        raise UserError(f"this network cannot be converted to ONNX: {_first_line(error)}; use --to torch") from error
    onnx.model.metadata_props.update(_as_json(metadata))
    onnx.save(path)


def _read_onnx(network: Network, path: Path) -> ImagesToLogitsFunction:
    from onnxruntime import InferenceSession

    session = InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _use_onnx(network: Network, path: Path) -> str:
    return f'logits, = onnxruntime.InferenceSession({str(path)!r}).run(["logits"], {{"images": images}})'


def _names_in_onnx(path: Path) -> str:
    metadata = f"onnxruntime.InferenceSession({str(path)!r}).get_modelmeta().custom_metadata_map"
    return f"class_names = json.loads({metadata}['class_names'])"


INSIDE, OUTSIDE = "normalised inside", "not normalised inside"

EXPORT_FORMATS = {
    "torchvision": ExportFormat(
        (".safetensors", ".pth"), _write_torchvision, _read_torchvision, _use_torchvision, _names_in_torchvision, OUTSIDE
    ),
    "torch": ExportFormat((".pt2",), _write_torch, _read_torch, _use_torch, _names_in_torch, INSIDE),
    "onnx": ExportFormat((".onnx",), _write_onnx, _read_onnx, _use_onnx, _names_in_onnx, INSIDE),
}
