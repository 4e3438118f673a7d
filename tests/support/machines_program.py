"""One of two machines with a feature table on a disk of its own: `RANK=0 python machines_program.py FOLDER`; notes what the table holds.

With `UNREADABLE=1` that process cannot read its features; both note the error.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ftlit.errors import UserError
from ftlit.features.spec import HASH_DTYPE
from ftlit.features.table import FeatureKey, FeatureTable, Rows, Writer
from ftlit.lit.features import exchange
from ftlit.lit.features.exchange import copy_between_machines, missing_everywhere

HELD = ([0, 1, 2, 6], [2, 3, 6])  # by the disks of both machines, of images 0 to 6, where 6 equals 5
IMAGES = np.array([f"{min(place, 5):032d}".encode() for place in range(7)], HASH_DTYPE)


def features(dtype: torch.dtype) -> torch.Tensor:
    """The features of all images (7, 2, 3)."""
    return torch.stack([torch.full((2, 3), min(place, 5) + 0.5) for place in range(7)]).to(dtype)


def broadcast(value: object, src: int) -> object:
    """As that of a strategy of Lightning."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src)
    return values[0]


def unreadable(*_: object) -> None:
    """In place of `Rows`: the file of the features is gone."""
    raise OSError("gone")


def main(folder: Path, rank: int) -> None:
    """Exchange tables of several types, with `folder` as the disk of this machine."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder.parent}/meet", rank=rank, world_size=2)
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=broadcast)
    trainer = SimpleNamespace(global_rank=rank, local_rank=0, world_size=2, num_nodes=2, strategy=strategy)
    noted = {}
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        table = FeatureTable(folder / str(dtype), FeatureKey(str(dtype), dtype, (2, 3), {}))
        table.folder.mkdir(parents=True)
        writer = Writer(table)
        writer.add(IMAGES[HELD[rank]], features(dtype)[HELD[rank]])
        writer.flush()
        table.refresh()
        request = SimpleNamespace(images=SimpleNamespace(hashes=IMAGES), tables={"spec": table})
        lacking = missing_everywhere([request], trainer)
        try:
            copy_between_machines([request], trainer)
        except (OSError, UserError) as error:
            torch.save(str(error), folder / "noted")
            return
        table.refresh()
        held = np.delete(IMAGES, lacking[0])
        noted[str(dtype)] = {
            "computed": lacking,
            "rows": Rows(table, held).read(range(len(held))),
            "held": sum(len(shard.images) for shard in table.shards),
        }
    torch.save(noted, folder / "noted")


if __name__ == "__main__":
    if os.environ.get("UNREADABLE") == os.environ["RANK"]:
        exchange.Rows = unreadable
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
