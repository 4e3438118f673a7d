"""Files of `--to torch` (an archive of torch.export) and `--to onnx`: written from one exported program, and read back as a function."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.errors import UserError
from ftlit.export.images_to_logits import Variant, module_of, random_images
from ftlit.inference.network import Network

Metadata = Mapping[str, Any]
ImagesToLogitsFunction = Callable[[Tensor], Tensor]


def as_json(metadata: Metadata) -> dict[str, str]:
    """Each value as JSON, for files whose metadata are texts."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}


def _program(network: Network, variant: Variant) -> torch.export.ExportedProgram:
    names = {0: "batch", **({2: "height", 3: "width"} if variant.preprocessing else {})}
    shapes = ({axis: torch.export.Dim(name) for axis, name in names.items()},)
    module = module_of(network, variant)
    try:
        with torch.no_grad():
            return torch.export.export(module, (random_images(network, 2, variant),), dynamic_shapes=shapes, strict=False)
    except UserError:  # a head that does not suit the backbone
        raise
    except Exception as error:  # code that cannot be traced raises almost any error
        raise UserError(
            "--to torch and --to onnx cannot export this network: change the code that depends on the values of tensors, or export another "
            f"network ({_first_line(error)})"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def write_torch(network: Network, metadata: Metadata, path: Path, variant: Variant) -> None:
    """Write an archive of torch.export. Raises `UserError` for a network that cannot be traced."""
    program = _program(network, variant)
    with warnings.catch_warnings():  # torch's own, on weights that share their memory; the file is read again and compared
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, path, extra_files=as_json(metadata))


def read_torch(network: Network, path: Path) -> ImagesToLogitsFunction:
    """The program of an archive."""
    return torch.export.load(path).module()


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


def write_onnx(network: Network, metadata: Metadata, path: Path, variant: Variant) -> None:
    """Write an ONNX file. Raises `UserError` for a network that cannot be traced or converted."""
    with _unfused_attention(network.backbone):
        program = _program(network, variant)
    try:  # the optimizer would compute the weights of 32 bits from those of 16, and store them
        onnx: Any = torch.onnx.export(
            program, dynamo=True, optimize=not variant.half, input_names=["images"], output_names=["logits"], verbose=False
        )
    except Exception as error:  # as above
        raise UserError(f"this network cannot be converted to ONNX: give --to torch ({_first_line(error)})") from error
    onnx.model.metadata_props.update(as_json(metadata))
    onnx.save(path)


def read_onnx(network: Network, path: Path) -> ImagesToLogitsFunction:
    """A session of ONNX Runtime on the CPU."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3  # errors; it warns of each weight of 16 bits that is converted
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
