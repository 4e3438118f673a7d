"""Files of `--to torchvision` and `--to timm`: state dicts by the names of the original network, safetensors or `.pth`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2.functional import normalize

from ftlit.export.images_to_logits import Variant
from ftlit.export.original_state import Library, built, original_state
from ftlit.export.program_files import ImagesToLogitsFunction, Metadata, as_json
from ftlit.inference.network import Network


def writer_for(library: Library) -> Callable[[Network, Metadata, Path, Variant], None]:
    """The function that writes a network under the names of this library, see `original_state`."""

    def write(network: Network, metadata: Metadata, path: Path, variant: Variant) -> None:
        state = original_state(network, library, half=variant.half)
        if path.suffix == ".pth":
            path.with_suffix(".json").write_text(json.dumps(metadata, ensure_ascii=False, indent=1))
            torch.save(state, path)
        else:
            save_file(state, path, as_json(metadata))

    return write


def reader_for(library: Library) -> Callable[[Network, Path], ImagesToLogitsFunction]:
    """The function that loads a file into the network of this library."""

    def read(network: Network, path: Path) -> ImagesToLogitsFunction:
        model, spec = built(network, library), network.input_spec
        model.load_state_dict(torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path))

        def logits(images: Tensor) -> Tensor:
            found: Tensor = model(normalize(images, list(spec.mean), list(spec.std)))
            return found

        return logits

    return read


def loading_of(path: Path, shown: str) -> str:
    """Code that loads the state dict of a file whose path is written as `shown`."""
    return f"torch.load({shown})" if path.suffix == ".pth" else f"safetensors.torch.load_file({shown})"


def class_names_of(path: Path) -> str:
    """Code that reads the names of the classes of a file."""
    if path.suffix == ".pth":
        return f"class_names = json.load(open({str(path.with_suffix('.json'))!r}))['class_names']"
    return f"class_names = json.loads(safetensors.safe_open({str(path)!r}, 'pt').metadata()['class_names'])"
