"""Units of FSDP2: the modules of a FineTuner whose weights are gathered and sharded again together."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ftlit.models.backbone import Backbone
from ftlit.zoo.timm_split.grid_constants import WithGridConstants


def units_of(backbone: Backbone, head: nn.Module) -> dict[str, nn.Module]:
    """The modules of a FineTuner that are gathered by themselves, by name: the head, and the layers of the backbone.

    Not a layer whose parameters other layers read (`WithGridConstants`): it is gathered for the whole pass.
    """
    blocks = [part for part in backbone.modules() if isinstance(part, WithGridConstants)]
    shared = {id(parameter) for block in blocks for parameter in block.before[0].parameters()}
    units = {f"backbone.{name}": layer for name, layer in backbone.items()} | {"head": head}
    return {name: unit for name, unit in units.items() if not any(id(parameter) in shared for parameter in unit.parameters())}


def shard_layers(module: nn.Module, backbone: Backbone, head: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a module in place: each of `units_of` is gathered by itself, and the rest.

    Parameters are replaced by DTensors with the same `requires_grad`, contiguous in memory.

    Args:
        module: with `backbone` and `head`; its forward pass calls both.
        backbone: its layers.
        head: of any kind.
        mesh: one dimension of processes.
    """
    from torch.distributed.fsdp import fully_shard  # here: it takes long to import

    module.to(memory_format=torch.contiguous_format)  # which torch demands
    for unit in units_of(backbone, head).values():
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)  # between two passes all are shards
