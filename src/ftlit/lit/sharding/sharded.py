"""What is sharded. torch's sharding takes long to import, so it is not imported to ask: whoever sharded something has imported it."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(module: object) -> "TypeIs[FSDPModule]":
    """Whether `fully_shard` has sharded a module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_shard(value: Any) -> "TypeIs[DTensor]":
    """Whether a value is a DTensor."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(value, tensor.DTensor)
