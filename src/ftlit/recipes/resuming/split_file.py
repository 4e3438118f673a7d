"""The split of a run in its folder: written when the run begins, read when it is resumed, or when its weights are trained further."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ftlit.data.dataset import SPLITS, Split
from ftlit.data.splitting.stored_split import FILE, REMEDY, StoredSplit, read_split, write_split
from ftlit.errors import UserError, one_line
from ftlit.features.image_hashes import cached_hashes
from ftlit.formatting import shown
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.run_folder import is_run_folder

UNKNOWN = "it is unknown whether that run trained on the test split of this one"


def store_split(folder: str | Path, images: ImageData | None) -> None:
    """Write the split of images that are known by their content; of other data none is stored."""
    if images is None or any(examples.contents is None for examples in images.all_images.splits.values()):
        return
    collection = images.all_images
    write_split(folder, collection, {split: cached_hashes(collection.splits[split]) for split in SPLITS})


def kept_split(cfg: DictConfig, start: StoredSplit | None = None) -> dict[str, StoredSplit]:
    """The argument `split_from` of the data. Empty where it is as the config gives it.

    Args:
        cfg: of the run.
        start: the split of the run of `init_from`.

    Returns:
        Of a run that is resumed exactly its images, if it has stored its split; of another one the split of the run of `init_from`, unless
        the config gives one.
    """
    if _restores_split(cfg):
        return {"split_from": read_split(cfg.paths.run, is_whole=True, may_change=may_change(cfg))}
    return {"split_from": start} if start and "split_from" in cfg.data and cfg.data.split_from is None else {}


def may_change(cfg: DictConfig) -> Sequence[Split]:
    """The splits whose files may have another content than when the run that is resumed began, such as a repaired one: those that no saved
    step of training depends on. None where there is no stored split, by which the images are compared one by one.
    """
    if not _restores_split(cfg):
        return ()
    return ("test",) if Path(cfg.paths.run, "checkpoints", "last.ckpt").is_file() else SPLITS


def _restores_split(cfg: DictConfig) -> bool:
    return bool(cfg.get("resume")) and "split_from" in cfg.data and Path(cfg.paths.run, FILE).is_file()


def seen_notes(weights: Any, data: Any, split_from: Any = None) -> list[str]:
    """A note on the test images that the run which the weights come from has seen; empty for weights that lie in no run's folder.

    Args:
        weights: value of `backbone.weights`.
        data: of the run.
        split_from: value of `data.split_from`, which the note proposes only where it is not followed yet.
    """
    folder = _run_of(weights)
    if folder is None or not isinstance(data, ImageData):
        return []
    start, test = f"weights of the run {shown(folder)}: ", data.all_images.splits["test"]
    try:
        stored = read_split(folder) if (folder / FILE).is_file() else None
    except UserError as error:
        return [f"{start}{UNKNOWN} ({one_line(error).removesuffix(f': {REMEDY}')})"]
    if stored is None or test.contents is None:
        noun = data.input_spec.noun
        reason = f"there is no {FILE}" if stored is None else f"these {noun} cannot be compared by content with those of that run"
        return [f"{start}{UNKNOWN} ({reason})"]
    places: Sequence[str | None] = [stored.split_of.get(image) for image in cached_hashes(test)]
    train, val = places.count("train"), places.count("val")
    note = f"{start}{train:,} of the {len(test):,} test {data.input_spec.noun} are in the train split of that run, {val:,} in its val split"
    followed = split_from is not None and Path(split_from).expanduser().resolve() == folder.resolve()
    advised = (train or val) and "test" in data.all_images.split_off and not followed
    return [note + (f"; to keep the split of that run, give data.split_from={shown(folder)}" if advised else "")]


def _run_of(weights: Any) -> Path | None:
    """The folder of the run that a path of weights lies in, or is."""
    if not isinstance(weights, str) or not Path(weights).expanduser().exists():
        return None
    path = Path(weights).expanduser().absolute()
    return next((folder for folder in (path, *path.parents[:2]) if is_run_folder(folder)), None)
