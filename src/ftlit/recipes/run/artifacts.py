"""Write the files of a run's folder."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ftlit.files import remove_parts, write_atomically
from ftlit.formats import ENCODING, write_json
from ftlit.formatting import shell_command
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features.feature_data import FeatureData
from ftlit.recipes.config.hydra_internals import hydra_config
from ftlit.recipes.config.overrides import OF_ITS_FOLDER, repeated_words, typed_command
from ftlit.recipes.resuming.resume import write_config
from ftlit.recipes.resuming.split_file import store_split
from ftlit.report import run_files
from ftlit.run_folder import COMMAND


def write_folder(cfg: DictConfig, data: Any, *, resumed: bool = False) -> None:
    """Write `config.yaml`, composed and resolved, `class_names.json` and `split.json`; of a new run also `command.json`."""
    folder = Path(cfg.paths.run)
    if not resumed:
        run_files.remove_suspects(folder)
        write_command(folder)
    for place in (folder, folder / "checkpoints", folder / run_files.FOLDER):
        remove_parts(place)  # of a run that was killed
    write_config(cfg)
    write_atomically(folder / "class_names.json", json.dumps(data.class_names, ensure_ascii=False, indent=1).encode(**ENCODING))
    store_split(folder, images_of(data))


def write_command(folder: Path) -> None:
    """Write `command.json`: the command of this run, the words with which `again=RUN` repeats it in a new folder, and the current folder,
    which relative paths begin in. Nothing where the config was composed by another program.
    """
    if (hydra := hydra_config()) is None:
        return
    words = [word for word in repeated_words() if not OF_ITS_FOLDER.match(word)]
    command = {"command": shell_command([*typed_command(), *words]), "words": words, "folder": hydra.runtime.cwd}
    write_json(folder / COMMAND, command)


def images_of(data: Any) -> ImageData | None:
    """The images of a built-in data module; `None` for a custom one."""
    found = data.images if isinstance(data, FeatureData) else data
    return found if isinstance(found, ImageData) else None
