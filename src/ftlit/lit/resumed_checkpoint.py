"""What an exact resume needs: the best checkpoint, found where the run's folder is now and checked to be the run's own, and loaders."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ftlit.data.samplers import EpochOrder, TrainOrder
from ftlit.errors import UserError
from ftlit.formatting import count
from ftlit.lit.sharding.shards import read_common
from ftlit.run_folder import RUN, RUN_STATE, is_sharded_checkpoint, new_run_advice
from ftlit.tensor_files import load_checkpoint, why_unreadable

RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def follow_folder(state: dict[str, Any], folder: str | PathLike[str] | None) -> None:
    """Edit the state of a `ModelCheckpoint` for a folder that was moved or copied: Lightning would drop the score and keep the old path.

    Args:
        state: in a checkpoint; changed in place.
        folder: `dirpath` of the callback now.
    """
    old = state.get("dirpath")
    if not old or folder is None or str(folder) == old:
        return

    def moved(path: str) -> str:
        return str(Path(folder, Path(path).relative_to(old))) if path and Path(path).is_relative_to(old) else path

    state |= {name: moved(state[name]) for name in PATHS if name in state}
    state |= {"dirpath": str(folder), "best_k_models": {moved(path): score for path, score in state.get("best_k_models", {}).items()}}


def check_last(path: Path, run: str) -> str:
    """Check, before anything is written, that a checkpoint and that of its best epoch belong to a run.

    Returns:
        Epoch and step at which training continues, in words; empty for a folder that another strategy than `Fsdp2Strategy` wrote.

    Raises:
        UserError: one of them is missing, damaged, or of another run.
    """
    if path.is_dir() and not is_sharded_checkpoint(path):
        return ""
    try:
        content = read_common(path)[0] if path.is_dir() else load_checkpoint(path)
    except Exception as error:
        raise UserError(f"{path} is damaged, or not a checkpoint ({why_unreadable(path, error)}): {new_run_advice(path)}") from error
    if content.get(RUN_STATE, {}).get(RUN, run) != run:
        raise UserError(f"{path} is the checkpoint of another run: restore the checkpoint of the run that is resumed, or start a new run")
    for state in content.get("callbacks", {}).values():
        if isinstance(state, dict) and "best_model_path" in state:
            follow_folder(state, path.parent)
            check_best(state, run)
    return f"epoch {content['epoch']}, after {count(int(content['global_step']), 'optimizer step')}"


def check_best(state: dict[str, Any], run: str | None) -> None:
    """Check that the file of the best epoch is there and belongs to a run.

    Args:
        state: of a `ModelCheckpoint`, in the checkpoint that is resumed.
        run: the digest of the run; `None`: not known.

    Raises:
        UserError: it is missing, damaged, or of another run.
    """
    if not state.get("best_model_path"):
        return
    best = Path(state["best_model_path"])
    advice = "restore the file of this run, or start a new run"
    if not best.exists():
        raise UserError(f"{best}, the checkpoint of the best epoch, is missing: {advice}")
    if not best.is_file():  # sharded
        return
    try:
        content = load_checkpoint(best)
    except Exception as error:
        raise UserError(f"{best} is damaged, or not a checkpoint ({why_unreadable(best, error)}): {advice}") from error
    if run and content.get(RUN_STATE, {}).get(RUN, run) != run:
        raise UserError(f"{best} is the checkpoint of another run: {advice}")


def check_loaders(loaders: Any) -> None:
    """Refuse loaders that store their own position: before a step, when a checkpoint is saved, they have given its batch already. Warn of
    those whose order depends on a generator, whose state no checkpoint holds.
    """
    for loader in _several(loaders):
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            raise UserError(
                f"LastCheckpoint cannot resume exactly with {type(loader).__name__}, because this loader stores its own position: replace "
                "LastCheckpoint by ModelCheckpoint(every_n_train_steps=...)"
            )
        if isinstance(sampler := getattr(loader, "sampler", None), RANDOM_SAMPLERS):
            warnings.warn(
                f"LastCheckpoint cannot resume exactly: {type(sampler).__name__}, which DataLoader(shuffle=True) uses, draws another order "
                "after a resume. To resume exactly at any step, give ftlit.ResumableData(dataset, batch_size=...) in place of the loader. "
                "To resume only where an epoch begins, give DataLoader(..., sampler=DistributedSampler(dataset, num_replicas=1, rank=0))",
                stacklevel=2,
            )


def order_seeds(loaders: Any) -> list[int | None]:
    """The seed of the order of each loader; `None` where its order is no function of a seed and the epoch."""
    samplers = [getattr(loader, "sampler", None) for loader in _several(loaders)]
    return [sampler.seed if isinstance(sampler, DistributedSampler) and sampler.shuffle else None for sampler in samplers]


def check_order_seeds(before: Sequence[int | None], loaders: Any) -> None:
    """Refuse a resume whose loaders have another order than before, because their sampler has another seed."""
    for old, new in zip(before, order_seeds(loaders), strict=False):
        if old is not None and new is not None and old != new:
            raise UserError(
                f"the checkpoint was written with DistributedSampler(seed={old}) in the train loader, but this run has seed={new}, which "
                f"gives the examples another order: give seed={old} (where Lightning adds the sampler: seed_everything({old})), or start "
                "a new run"
            )


def began_in_epoch_0(loaders: Any) -> bool:
    """Whether worker processes have begun with the order of epoch 0: Lightning sets the epoch of a resumed run after they start."""
    return any(
        getattr(loader, "num_workers", 0) > 0 and hasattr(sampler, "set_epoch") and not isinstance(sampler, TrainOrder | EpochOrder)
        for loader in _several(loaders)
        for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    )


@contextmanager
def continuing(loaders: Any) -> Iterator[None]:
    """Hide, for a block, Lightning's warning of a loader that is not resumable, where the order of all loaders is ours: it continues.

    Filters that others set within the block stay, so that `warnings.catch_warnings` does not do.
    """
    if not all(isinstance(getattr(loader, "sampler", None), TrainOrder | EpochOrder) for loader in _several(loaders)):
        yield
        return
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
    filters: Any = warnings.filters
    own = filters[0]
    try:
        yield
    finally:
        with suppress(ValueError):  # others have removed all filters
            filters.remove(own)


def _several(loaders: Any) -> list[Any]:
    return list(loaders.values() if isinstance(loaders, Mapping) else loaders if isinstance(loaders, list | tuple) else [loaders])
