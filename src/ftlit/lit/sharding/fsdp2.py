"""FSDP2: each process holds a shard of every weight, of its gradient and of its optimizer state (torch's `fully_shard`).

Zhao et al. 2023 (PyTorch FSDP), section 3; per-parameter sharding: torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ftlit.errors import UserError
from ftlit.files import remove
from ftlit.lit.module_internals import shard_over_all_processes
from ftlit.lit.sharding.memory import available_memory
from ftlit.lit.sharding.sharded import is_shard
from ftlit.lit.sharding.shards import (
    check_same_network,
    filled_in,
    mapped,
    read_common,
    read_shards,
    sharded_tensors,
    whole_tensors,
    write_shards,
)
from ftlit.lit.shared_errors import raised_in_all

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

OPTIMIZERS = "optimizer_states"  # key in Lightning's checkpoints
MAX_MEMORY_SHARE = 0.8  # of the free memory, which the tensors of a plain checkpoint may take


class Fsdp2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over all processes, with FSDP2 only, whose checkpoints resume exactly.

    - A checkpoint that training resumes from is a folder with a file of shards for each process (`ftlit.lit.sharding.shards`). It holds
      the optimizer state of all parameters, also of those that are frozen when training resumes.
    - Any other checkpoint, such as that of the best epoch, is a plain file with the weights, gathered by the first process. Where they do
      not fit into its free memory, it is a folder too, which `ftlit consolidate` turns into a file.
    - The statistics of batch norms are those of the first process, as with DDP.

    `FineTuner` shards itself. Any other LightningModule needs a `configure_model` with `fully_shard`.

    Args:
        timeout: that a process waits for the others in a collective operation.

    Attributes:
        resumes_from: the checkpoint that training resumes from, which `LastCheckpoint` sets; `None`: any that holds optimizer state.
    """

    def __init__(self, timeout: timedelta | None = default_pg_timeout) -> None:
        super().__init__(tensor_parallel_size=1, timeout=timeout)
        self.resumes_from: Path | None = None

    def setup_environment(self) -> None:
        """Form the process group, and the mesh of all processes."""
        shard_over_all_processes(self)
        super().setup_environment()

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """False: the stage, and the position in the epoch, are restored before the optimizer and the loaders are built."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning calls `load_optimizer_state_dict`."""
        return True

    @property
    def mesh(self) -> DeviceMesh:
        """The processes over which the weights are sharded."""
        return self.device_mesh["data_parallel"]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step of the module, with the batch norm statistics of the first process."""
        self._share_statistics()
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step of the module, with the batch norm statistics of the first process."""
        self._share_statistics()
        return super().validation_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights and buffers, the former sharded."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, sharded."""
        return optimizer.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder of shards, or a plain file of the weights; see the class. Raises `WriteError`."""
        path = Path(self.broadcast(filepath))
        if OPTIMIZERS in checkpoint and self.resumes_from in (None, path):
            return self._write(checkpoint, path)
        content = {key: value for key, value in checkpoint.items() if key != OPTIMIZERS}
        if not self.broadcast(_size(content) < MAX_MEMORY_SHARE * available_memory()):
            return self._write(content, path)
        gathered = mapped(content, lambda tensor: _kept(tensor.full_tensor(), keep=self.is_global_zero))
        with raised_in_all(self):
            if self.is_global_zero:
                if path.is_dir():
                    remove(path)
                self.checkpoint_io.save_checkpoint(gathered, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint, with shards on the device. Nothing is loaded into the module yet.

        Raises:
            UserError: a damaged checkpoint, or a plain file to resume training from.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return self._read(path)
        assert self.lightning_module is not None
        if self.lightning_module.trainer.state.fn == "fit":
            raise UserError(
                f"{path} is a plain checkpoint, without the sharded optimizer state: to resume with trainer=fsdp2, give the folder "
                "that it wrote; to begin from these weights, start a new run with backbone.weights=... or init_from=..."
            )
        return self._read_plain(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy the weights of a checkpoint into the module, in place. Raises `UserError` for those of another network."""
        assert self.lightning_module is not None
        held, own = checkpoint["state_dict"], self.lightning_module.state_dict()
        if not strict:
            own = {name: tensor for name, tensor in own.items() if name in held}
            held = {name: held[name] for name in own}
        check_same_network(held, own)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(held[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give the optimizers their state, in place."""
        for optimizer, state in zip(self.optimizers, checkpoint[OPTIMIZERS], strict=True):
            optimizer.load_state_dict(state)

    def _write(self, content: dict[str, Any], folder: Path) -> None:
        write_shards(content, folder, self.global_rank, self.world_size, partial(raised_in_all, self))

    def _read(self, folder: Path) -> dict[str, Any]:
        """A folder of shards, with DTensors on the device. With as many processes as wrote it, each reads its own file only."""
        own: dict[str, Tensor] = {}
        with raised_in_all(self):
            common, processes = read_common(folder)
            if processes == self.world_size:
                own = read_shards(folder, self.global_rank, processes)
            else:
                whole_tensor = whole_tensors(folder, processes)
        if processes != self.world_size:
            return filled_in(common, lambda name: self._distributed(whole_tensor(name)))  # type: ignore[no-any-return]
        lengths = self._lengths(own)

        from torch.distributed.tensor import DTensor, Shard  # here: it takes long to import

        def sharded(name: str) -> DTensor:
            local = own[name].to(self.root_device, copy=True)  # the file is mapped
            whole = torch.empty(lengths[name], *local.shape[1:], device="meta")
            return DTensor.from_local(local, self.mesh, (Shard(0),), shape=whole.shape, stride=whole.stride())

        return filled_in(common, sharded)  # type: ignore[no-any-return]

    def _lengths(self, own: Mapping[str, Tensor]) -> dict[str, int]:
        """The first dimension of each whole tensor: the sum over the shards."""
        lengths = torch.tensor([len(shard) for shard in own.values()], device=self.root_device)
        torch.distributed.all_reduce(lengths)
        return dict(zip(own, lengths.tolist(), strict=True))

    def _read_plain(self, path: Path) -> dict[str, Any]:
        """A plain file, which the first process reads, with those tensors sharded that are sharded in the module."""
        content = {}
        with raised_in_all(self):
            if self.is_global_zero:
                content = self.checkpoint_io.load_checkpoint(path)
        assert self.lightning_module is not None
        held = content.pop("state_dict", {})
        rest, kinds = self.broadcast((content, {name: (value.shape, value.dtype) for name, value in held.items()}))
        own, state = self.lightning_module.state_dict(), {}
        for name, (shape, dtype) in kinds.items():
            whole = held[name].to(self.root_device) if self.is_global_zero else torch.empty(shape, dtype=dtype, device=self.root_device)
            torch.distributed.broadcast(whole, 0)
            state[name] = self._distributed(whole) if is_shard(own.get(name)) else whole
        return {**rest, "state_dict": state}

    def _distributed(self, whole: Tensor) -> "DTensor":
        from torch.distributed.tensor import Shard, distribute_tensor  # here: it takes long to import

        return distribute_tensor(whole.to(self.root_device), self.mesh, (Shard(0),), src_data_rank=None)

    def _share_statistics(self) -> None:
        assert self.lightning_module is not None
        norms = [part for part in self.lightning_module.modules() if isinstance(part, _BatchNorm)]
        statistics = [buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()]
        if not statistics or self.world_size == 1:
            return
        joined = torch.cat([buffer.flatten() for buffer in statistics])
        torch.distributed.broadcast(joined, 0)
        if not self.is_global_zero:
            for buffer, values in zip(statistics, torch.split(joined, [buffer.numel() for buffer in statistics]), strict=True):
                buffer.copy_(values.view_as(buffer))


def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy a value into a parameter or buffer, in place; a whole value into a sharded parameter: each process keeps its shard."""
    if is_shard(tensor) and not is_shard(value):
        from torch.distributed.tensor import distribute_tensor  # here: it takes long to import

        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def _size(content: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in sharded_tensors(content))


def _kept(tensor: Tensor, *, keep: bool) -> Tensor | None:
    return tensor.cpu() if keep else None
