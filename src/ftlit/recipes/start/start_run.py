"""The run of `init_from`: a copy of its files in the folder of the new run, and what is read from there.

The copy is all that the new run reads, also when it is resumed: the run of `init_from` may be moved, trained on or deleted.
"""

import shutil
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.data.splitting.stored_split import FILE as SPLIT
from ftlit.data.splitting.stored_split import StoredSplit, read_split
from ftlit.errors import UserError, shorten
from ftlit.files import replacing
from ftlit.formatting import shown
from ftlit.inference.load_network import load
from ftlit.inference.network import Network
from ftlit.inference.record import KEY, part_of, read_record
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.report.run_files import FOLDER as REPORT_FOLDER
from ftlit.run_folder import DATA, REPORT, RESULT, meant_run, result_checkpoint
from ftlit.tensor_files import load_checkpoint
from ftlit.zoo import BACKBONES

FOLDER = "init_from"  # in the folder of a run: the copy
CONFIG = "config.yaml"
FILES = (
    "class_names.json",
    SPLIT,
    DATA,
    RESULT,
    f"{REPORT_FOLDER}/{REPORT}",
    CONFIG,
)  # the config last: with it the copy is complete


@dataclass(frozen=True)
class StartRun:
    """A run that another one goes on from.

    Args:
        name: value of `init_from`.
        network: its result; the backbone is the one that is trained further, in place.
        split: where each of its images was; `None` where it stored none.
    """

    name: str
    network: Network
    split: StoredSplit | None

    @property
    def is_other_than_published(self) -> bool:
        """Whether the backbone has other weights than those that are published, so that a slim checkpoint cannot leave them out."""
        return self.network.backbone.origin.kind == "file"

    def take_backbone(self) -> Backbone:
        """The backbone of `network`, ready for training: in training mode, all of its weights trainable, no layer reinitialized."""
        backbone = self.network.backbone
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)
        return backbone.train()


def copy_of(cfg: DictConfig) -> Path:
    """Where the folder of a run holds the run of `init_from`."""
    return Path(cfg.paths.run, FOLDER)


def copy_start(run: Path, to: Path) -> None:
    """Copy the files of a run that another run needs to go on from it.

    Args:
        run: folder of the run.
        to: the folder that is written.

    Raises:
        UserError: the folder holds no run with a result, or several.
    """
    if not run.is_dir():
        what = "is a file" if run.is_file() else "does not exist"
        raise UserError(f"init_from={shown(run)} {what}{meant_run(run) or ': give the folder of a run'}")
    result = result_checkpoint(run)
    if not result.is_file() and (jobs := [job for job in sorted(run.iterdir(), key=_number) if result_checkpoint(job).is_file()]):
        runs = shorten(map(shown, jobs), most=8)
        raise UserError(f"init_from={shown(run)} has no result of its own: give one of the runs in it ({runs})")
    checkpoint = str(result.relative_to(run))
    for name in (checkpoint, CONFIG):
        if not (run / name).is_file():
            raise UserError(f"init_from={shown(run)} has no {name}: give the folder of a run that has a result")
    shutil.rmtree(to / "checkpoints", ignore_errors=True)  # of another run of `init_from`
    for name in (checkpoint, *FILES):
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if (run / name).is_file():
            with (run / name).open("rb") as source, replacing(path) as target:
                shutil.copyfileobj(source, target)


def _number(job: Path) -> tuple[int, str]:
    return int(job.name) if job.name.isdecimal() else 0, job.name


def load_start(cfg: DictConfig) -> StartRun | None:
    """The run of `init_from`, from its copy; `None` where there is none.

    Raises:
        UserError: the copy is missing or damaged; see also `has_own_parts`.
    """
    if cfg.get("init_from") is None:
        return None
    folder = copy_of(cfg)
    network = _with_origin(load(folder, trust=has_own_parts(cfg, folder)), folder, str(cfg.init_from))
    split = read_split(folder, only_if_missing=True, name=str(cfg.init_from)) if (folder / SPLIT).is_file() else None
    return StartRun(str(cfg.init_from), network, split)


def has_own_parts(cfg: DictConfig, folder: Path) -> bool:
    """Whether the network of the copy has parts of the user's own code. It runs because the config names it, not because the file does.

    Raises:
        UserError: the config names other code, or gives it other arguments.
    """
    file = result_checkpoint(folder)
    record = read_record(load_checkpoint(file), file)
    own = {noun: str(path) for noun in ("backbone", "head") if (path := record[noun].get("import"))}
    for noun, path in own.items():
        if cfg[noun].get("_target_") != path:
            raise UserError(
                f"init_from={cfg.init_from}: the {noun} of that run is {path}, which is not part of ftlit, so its code runs only where the "
                f"command line names it too: give {noun}._target_={path} as in that run"
            )
    if "backbone" in own:
        given: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
        now, before = (part["arguments"] for part in (part_of(given, BACKBONES), record["backbone"]))
        if name := next((name for name in {**before, **now} if now.get(name) != before.get(name)), None):
            called = f"with {name}={before[name]}" if name in before else f"without {name}"
            sign = "" if name in now else "+"
            way = f"give {sign}backbone.{name}={before[name]}" if name in before else f"leave backbone.{name} out"
            raise UserError(f"init_from={cfg.init_from}: {own['backbone']} was called {called} in that run: {way}")
    return bool(own)


def _with_origin(network: Network, folder: Path, name: str) -> Network:
    """Name the run as the origin of the weights, unless they are the published ones still, of which slim checkpoints keep none."""
    backbone = network.backbone
    file = result_checkpoint(folder)
    checkpoint = load_checkpoint(file)
    record = checkpoint[KEY]
    if not record.get("base") or record["affine"] or any(key.startswith("backbone.") for key in checkpoint["state_dict"]):
        backbone.origin = WeightsOrigin("file", f"{file.name} of {name}")
        backbone.record = None if backbone.record is None else {**backbone.record, "weights": None, "reinit": []}
        backbone.reinit = ()
    return network


def digest_of_start(cfg: DictConfig) -> dict[str, str]:
    """The entry of `data.json` that identifies the weights which a run began with; empty without `init_from`."""
    if cfg.get("init_from") is None:
        return {}
    with result_checkpoint(copy_of(cfg)).open("rb") as file:
        return {FOLDER: file_digest(file, "sha256").hexdigest()[:32]}
