"""How networks of timm are split, without computing anything: they are built and traced on the meta device.

`python tests/support/timm_structure.py [MODULE ...]` splits every architecture that timm has weights for, writes one line for each as JSON,
and counts tags of weights at the end. It takes an hour or two; with names of modules of timm only these.
"""

import json
import sys
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import timm
import torch

from ftlit import UserError
from ftlit.zoo.timm_split import timm_layers, timm_trace
from ftlit.zoo.timm_split.grid_constants import WithGridConstants


@contextmanager
def shapes_in_place_of_values():
    """Compare tensors on the meta device by their shapes, as they have no values."""
    equal = torch.equal

    def trace(model, images, **options):
        return timm_trace.trace(model, images.to("meta"), **options)

    def same(a, b):
        return a.shape == b.shape if a.is_meta or b.is_meta else equal(a, b)

    with (
        patch.object(timm_layers, "trace", trace),
        patch.object(timm_layers, "_is_close", lambda a, b: a.shape == b.shape),
        patch.object(torch, "equal", same),
    ):
        yield


def structure(name, split_at="stages"):
    """Names of the layers of an architecture, the reason if it is one layer, and how many blocks take constants of the grid.

    Raises:
        UserError: it is refused.
    """
    with torch.device("meta"):
        model = timm.create_model(name)
    config = timm.get_pretrained_cfg(name).to_dict()
    with shapes_in_place_of_values():
        parts, note = timm_layers.take_apart(model, config["input_size"][-1], split_at)
    modules = [module for layer in parts.layers.values() for module in layer.modules()]
    return tuple(parts.layers), note, sum(isinstance(module, WithGridConstants) for module in modules)


def module_of(name):
    """Module of timm that builds an architecture, without the package."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def tags():
    """Architecture -> number of its tags of weights."""
    return Counter(tag.partition(".")[0] for tag in timm.list_pretrained())


def main(modules):
    """Print the structure of each architecture and count the tags."""
    counts = Counter()
    for name, number in sorted(tags().items()):
        if modules and module_of(name) not in modules:
            continue
        try:
            layers, note, bound = structure(name)
            row = {"layers": len(layers), "bound": bound, "note": note}
            kind = "whole" if len(layers) == 1 else "apart"
        except UserError as error:
            row, kind = {"note": str(error)}, "refused"
        counts[kind] += number
        print(json.dumps({"name": name, "module": module_of(name), "tags": number, "kind": kind, **row}), flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1:])
