"""How Lightning's trainer writes and reads checkpoints: atomically, checked for damage, and without executing anything in them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from ftlit.errors import UserError, one_line
from ftlit.lit.strategies import keeps_whole_weights, shards_later
from ftlit.run_folder import new_run_advice
from ftlit.tensor_files import load_checkpoint, save_checkpoint

KEYS = ("state_dict", "pytorch-lightning_version")  # of every checkpoint of Lightning


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's plugin writes a file to a temporary folder, copies it, and reads it without a check; this one does neither."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint atomically. Raises `WriteError`."""
        if _is_remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a checkpoint. `weights_only=None` means `True`, whatever the environment says.

        Raises:
            UserError: the file is damaged, holds more than tensors and plain values, or is no checkpoint of Lightning.
        """
        if _is_remote(path) or weights_only is False or Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only is not False)
        content = _load(Path(path), map_location)
        if not isinstance(content, dict) or not all(key in content for key in KEYS):
            raise UserError(f"{path} is not a checkpoint of a run: {new_run_advice(Path(path))}")
        return content


def use_checked_checkpoints(trainer: Trainer) -> None:
    """Let a trainer write and read checkpoints through `CheckedCheckpointIO`, unless it was given a plugin for that."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CheckedCheckpointIO()


def writes_atomically(trainer: Trainer) -> bool:
    """Whether a checkpoint of this trainer that holds the optimizer state replaces another as a whole.

    `Fsdp2Strategy` writes it itself, and knows it by its path, whatever plugin the trainer has.
    """
    if shards_later(type(trainer.strategy)):
        return True
    return isinstance(trainer.strategy.checkpoint_io, CheckedCheckpointIO) and keeps_whole_weights(type(trainer.strategy))


def _load(path: Path, map_location: Any) -> Any:
    try:
        return load_checkpoint(path, map_location)
    except FileNotFoundError:
        raise
    except UserError as error:
        raise UserError(f"{error}: {new_run_advice(path)}") from error
    except UnpicklingError as error:  # the code in the file did not run
        reason = "contains objects other than tensors and plain values, so it is not loaded"
        raise UserError(f"{path} {reason}: {new_run_advice(path)}") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or one_line(error)}): {new_run_advice(path)}") from error
    except Exception as error:  # damaged bytes raise almost any error
        raise UserError(f"{path} is damaged, or not a checkpoint: {new_run_advice(path)}") from error


def _is_remote(path: Any) -> bool:
    return "://" in str(path)
