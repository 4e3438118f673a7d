"""The images of a run that has ended, read again from the data that its config names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ftlit.data.dataset import Examples, Split
from ftlit.data.splitting.stored_split import FILE, read_split
from ftlit.errors import UserError, one_line, unknown
from ftlit.export.agreement import Photos, some_of
from ftlit.features.image_hashes import cached_hashes
from ftlit.formatting import shown
from ftlit.inference.network import Network
from ftlit.lit.datamodules import glyph_source, image_sources  # noqa: F401 (which register the sources)
from ftlit.lit.datamodules.image_data import DATA_SOURCES, ImageData, with_all_in_train
from ftlit.recipes.resuming.resume import DATA_OPTIONS, read_config

PREFIX = "data:"  # of the names of built-in data sources in a stored config
PLACES = DATA_OPTIONS[:-1]  # where the data are


def places_of(words: Sequence[str], command: str) -> dict[str, str]:
    """Name of an option -> its value, for words such as `data.root=FOLDER`: where the data of a run are now.

    Args:
        words: of the command line.
        command: that takes them, such as `ftlit demo`.

    Raises:
        UserError: another option, or a word without a value.
    """
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in PLACES:
            raise unknown("option", name, PLACES, owner=f"{command} RUN")
        if not value:
            raise UserError(f"{name} has no value: give the folder or file where the data are now, as in {name}=...")
        found[name.removeprefix("data.")] = value
    return found


def train_examples(run: Path, network: Network, places: Mapping[str, str] | None = None) -> tuple[Examples | None, str]:
    """The training images, and why there are none: a checkpoint alone, data of the user's own, or data that are not there any more.

    Only a built-in data source is called, with plain values: nothing that the file of the config names is imported.

    Args:
        run: folder of the run.
        network: of the run.
        places: see `places_of`; `None`: where the run read them.
    """
    return _examples(run, network, "train", places or {})


def moved_photos(run: Path, network: Network, places: Mapping[str, str]) -> Photos:
    """The images with which an export of the run is compared, where they are now: those of test, or of train if all were in train.

    Args:
        run: folder of the run.
        network: of the run.
        places: see `places_of`.

    Raises:
        UserError: none of them is there as a file, and why.
    """
    split: Split = "train" if (run / FILE).is_file() and not read_split(run).images["test"] else "test"
    found, why = _examples(run, network, split, places)
    files = [content for content in found.contents or () if isinstance(content, Path)] if found else []
    if not files:
        raise UserError(f"the {split} images of {run} are not found: {why or 'these data are no files of images'}")
    return some_of(split, files)


def _examples(run: Path, network: Network, split: Split, places: Mapping[str, str]) -> tuple[Examples | None, str]:
    """The images of a split, and why there are none; see `train_examples`."""
    try:
        stored = read_config(run) if run.is_dir() else None
        if stored is None:
            return None, f"{run} has no config.yaml"
        settings: Any = OmegaConf.to_container(stored.settings.data)
        target = str(settings.get("_target_"))
        if not target.startswith(PREFIX):
            return None, "the data of this run are read by code of its own"
        options = {name: value for name, value in settings.items() if not name.startswith("_")}
        if other := [f"data.{name}" for name in places if name not in options]:
            return None, f"the data of {run} have no option {other[0]}"
        options |= places
        if gone := _gone(options, places):
            return None, gone
        final, kept = bool(stored.settings.get("final")), read_split(run, only_if_missing=True) if (run / FILE).is_file() else None
        if kept and "split_from" in options:
            options["split_from"] = None if final else kept  # by that of a final run nothing is left for val and test
        data = DATA_SOURCES[target.removeprefix(PREFIX)](input_spec=network.input_spec, **options)
    except (ValueError, TypeError, OSError) as error:  # a config that was edited, or data that are gone
        return None, one_line(error)
    if not isinstance(data, ImageData) or list(data.class_names) != list(network.class_names):
        return None, "the data have other classes now"
    found = (with_all_in_train(data) if final else data).collection.splits[split]
    if kept and found.contents is not None:  # without images that are new since
        found = found.subset([place for place, image in enumerate(cached_hashes(found)) if kept.split_of.get(image) == split])
    return (found, "") if len(found) else (None, "none of the images of the run is among these data, by their content")


def _gone(options: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """Which place of the data does not exist, and what to give instead where it was not given; empty where all exist, or can be
    downloaded to where they were.
    """
    for place in PLACES:
        value = options.get(place.removeprefix("data."))
        is_given = place.removeprefix("data.") in given
        if not isinstance(value, str) or (path := Path(value).expanduser()).exists() or (options.get("download") and not is_given):
            continue
        here = "" if path.is_absolute() else f" in {shown(Path.cwd())}"
        remedy = "" if is_given else f"; if the data were moved, add {place}=... to the command"
        return f"there is no {place}={shown(path)}{here}{remedy}"
    return ""
