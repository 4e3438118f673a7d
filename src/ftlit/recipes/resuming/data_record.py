"""The record of a run's data, `data.json`: a run is resumed only on the images, or texts, and labels that it began with.

`split_file` restores the split of images that are known by their content; this notices changes of any data that is built in.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ftlit.data.dataset import SPLITS, Examples, Split
from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.features.image_hashes import cached_hashes
from ftlit.formats import read_json, write_json
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features.feature_data import FeatureData
from ftlit.recipes.resuming.resume import CONFIG, DATA_OPTIONS, MAY_CHANGE, changed_data_options, read_config
from ftlit.recipes.resuming.settings import resolved_settings, settings_text
from ftlit.recipes.resuming.split_file import may_change
from ftlit.recipes.start.start_run import FOLDER as START
from ftlit.recipes.start.start_run import digest_of_start
from ftlit.run_folder import DATA, RUN, new_run_advice

DataRecord = dict[str, Any]  # class_names, for each split the number of its images and a digest, mean and std of bands, digest of the start


def check_data(cfg: DictConfig, data: Any) -> tuple[str, list[str]]:
    """Compare the data with the record of the run that is resumed; write the record of a new run.

    Returns:
        A digest of settings and data when the run began, which identifies it, and a note for each path of the data that has changed.

    Raises:
        UserError: the images, labels or classes of the run have changed, or only their path has and there is no record to tell;
            `config.yaml` was edited.
    """
    path, record = Path(cfg.paths.run, DATA), record_of(data)
    record |= digest_of_start(cfg) if record else {}
    last = Path(cfg.paths.run, "checkpoints", "last.ckpt")
    before = read_json(path, remedy=new_run_advice(last)) if cfg.resume and path.is_file() else None
    if cfg.resume and record and before is None and last.is_file():
        raise UserError(
            f"resuming this run needs {path}, which is missing (older versions of ftlit did not write this file): "
            f"restore it, or {new_run_advice(last)}"
        )
    moved = changed_data_options(cfg) if cfg.resume else []
    if before and record:
        _check_same(before, record, may_change(cfg))
    elif moved:
        name, old, new = moved[0]
        raise UserError(f"resume=true needs the same config: {name} was {old} and is now {new}; give the old value, or start a new run")
    if before and RUN in before and not _is_other_training(before, record):
        _check_unedited(cfg, {name: before[name] for name in record}, before[RUN])
        run = before[RUN]  # of a release with other settings, perhaps
    else:
        run = _digest_of_run(resolved_settings(cfg), record)
        write_json(path, {RUN: run, **record})
    return run, [
        f"{name} was {old} when the run began and is now {new}; the data and labels are the same, so the run is resumed"
        for name, old, new in moved
    ]


def _is_other_training(before: Mapping[str, Any], now: DataRecord) -> bool:
    """Whether files of train or val have changed, before the first step; a change of test files leaves the run the same."""
    return bool(now) and any(before["splits"][split] != now["splits"][split] for split in ("train", "val"))


def _digest_of_run(settings: DictConfig, record: DataRecord) -> str:
    text = settings_text(settings, (*MAY_CHANGE, *DATA_OPTIONS))
    return hashlib.sha256(f"{text}\n{json.dumps(record, sort_keys=True)}".encode()).hexdigest()[:32]


def _check_unedited(cfg: DictConfig, record: DataRecord, run: str) -> None:
    """Refuse a `config.yaml` that was edited so that it agrees with a command whose settings are not those of the run."""
    stored = read_config(cfg.paths.run)
    if stored and stored.edited and _digest_of_run(stored.settings, record) != run:
        raise UserError(
            f"{Path(cfg.paths.run, CONFIG)} was edited and no longer matches the run: "
            "restore the file and repeat the command of the run, or start a new run with another hydra.run.dir=..."
        )


def record_of(data: Any) -> DataRecord:
    """The record of a built-in data module; an empty one for a custom module."""
    images = data.images if isinstance(data, FeatureData) else data
    if not isinstance(images, ImageData):
        return {}
    splits = images.collection.splits
    record = {split: {"images": len(splits[split]), "digest": _digest(splits[split])} for split in SPLITS}
    return {"class_names": list(images.class_names), "splits": record, **_bands_record(images.input_spec)}


def difference(old: DataRecord, new: DataRecord, names: tuple[str, str], may_change: Sequence[Split] = ()) -> str:
    """The first difference of two records, in words; empty where there is none. Custom data modules have none.

    Args:
        old: a record.
        new: another one.
        names: how both are called behind a number.
        may_change: splits of which the content of files does not count.
    """
    if old.get("class_names") != new.get("class_names"):
        return "other classes"
    for split in SPLITS if old and new else ():
        before, now = old["splits"][split], new["splits"][split]
        if before["images"] != now["images"]:
            return f"{split}: {before['images']} examples {names[0]}, {now['images']} {names[1]}"
        if before != now and split not in may_change:
            return f"{split}: other content or labels"
    return ""


def _bands_record(spec: object) -> DataRecord:
    """Mean and std of bands; nothing for other images, and for texts."""
    return {"bands": {"mean": list(spec.mean), "std": list(spec.std)}} if isinstance(spec, InputSpec) and spec.takes_bands else {}


def with_recorded_bands(cfg: DictConfig, spec: InputSpec) -> InputSpec:
    """The input spec of a run that is resumed, with the mean and std of bands that it began with; of another run as it is."""
    path = Path(cfg.paths.run, DATA)
    if not cfg.get("resume") or not spec.takes_bands or spec.mean or not path.is_file():
        return spec
    bands = read_json(path, remedy=new_run_advice(Path(cfg.paths.run, "checkpoints", "last.ckpt"))).get("bands")
    return replace(spec, **bands) if bands else spec


def _digest(examples: Examples) -> str:
    """A digest of the content and the labels of each image, in order; of its name where its content is not known without decoding."""
    contents = examples.sources if examples.contents is None else cached_hashes(examples)
    found = hashlib.sha256()
    for content, labels in zip(contents, examples.labels, strict=True):
        found.update(f"{content} {labels}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:32]


def _check_same(before: Mapping[str, Any], now: DataRecord, may_change: Sequence[Split]) -> None:
    """Raise `UserError` if the data have changed, apart from the content of files of these splits, which `StoredSplit` has compared."""
    if before.get(START) != now.get(START):
        raise UserError(f"resume=true: the network in {START} has changed since the run began; restore this folder, or start a new run")
    if change := difference(dict(before), now, ("then", "now"), may_change):
        raise UserError(f"resume=true: the data have changed since the run began ({change}); restore the old data, or start a new run")
