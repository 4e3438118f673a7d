"""Find the checkpoint that a run resumes from, check that its config is the same, and lock its folder."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, shorten
from ftlit.formats import KEY as FORMAT_KEY
from ftlit.formats import read_json, upgraded, with_format
from ftlit.recipes.checks.ranges import AUTO, RESOLVED_SETTINGS
from ftlit.recipes.config.hydra_internals import add_task_override, run_folder_template, run_mode
from ftlit.recipes.processes.launched import NEEDS_FOLDER, agreed
from ftlit.recipes.resuming.earlier_configs import BEFORE_SEVERAL_CUTS, upgrade_settings
from ftlit.recipes.resuming.elastic import InitialProcesses, keep_batch, processes_of
from ftlit.recipes.resuming.settings import Change, changes, chosen_options, registered_parts, resolved_settings, stable_settings
from ftlit.recipes.resuming.yaml_file import EditedFile, load_yaml, write_yaml
from ftlit.run_folder import BASELINE, REPORT, finish_replacing, is_complete, is_sharded_checkpoint, new_run_advice

CONFIG = "config.yaml"
REGISTERED_KEY = "registered"  # of the built-in parts, in `config.yaml`
CHOSEN_KEY = "chosen"  # of the options of config groups
PROCESSES_KEY = "processes"  # of the number of processes that the run began with

# of a run that is resumed: where and what is written, and who loads images (the seed is compared at its own name, not in callbacks)
MAY_CHANGE = (
    *("resume", "sweep", "doctor", "paths", "callbacks", "logger", "data.num_workers", "cache.folder", "cache.trust"),
    *("rank_timeout", "trainer.default_root_dir", "average.path"),
)
# may change where the images are the same, see `data_record`
DATA_OPTIONS = ("data.root", "data.csv", "data.val_csv", "data.test_csv", "data.on_bad_image")

RESUMABLE_RECIPES = ("finetune", "pretrain")  # those whose runs leave a checkpoint

SECONDS_TO_END = 10.0  # that the worker processes of a killed run live on, and its locks with them


def checkpoints_in(folder: str | Path) -> tuple[Path, Path]:
    """The paths of the last and the best checkpoint of a run."""
    last, best = (Path(folder, "checkpoints", f"{name}.ckpt") for name in ("last", "best"))
    return last, best


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """The checkpoint that this run resumes from; `None` for a new run, and for one that ended before its first step.

    Raises:
        UserError: the folder holds no run for `resume=true`, or holds one that a new run would overwrite; the checkpoint is damaged; the
            config differs from that of the run.
    """
    last, best = checkpoints_in(cfg.paths.run)
    if not cfg.resume:
        if last.exists() or best.exists():
            raise UserError(f"{cfg.paths.run} already holds a run: give resume=true to resume it, or another hydra.run.dir=...")
        return None
    check_settings(cfg)
    if not is_complete(last):  # the run ended before its first step
        probe = best.with_name(f"{BASELINE}.ckpt")  # which best.ckpt begins with
        if best.exists() and not (probe.exists() and cmp(best, probe, shallow=False)):
            raise UserError(f"resuming this run needs {last}, which is missing: restore it, or {new_run_advice(last)}")
        return None
    for path in filter(Path.is_dir, (last, best)):
        if not is_sharded_checkpoint(path):
            raise UserError(f"{path} is a folder that trainer=fsdp2 has not written, so no run can be resumed from it: start a new run")
    if last.is_file() and not is_zipfile(last):  # what torch.save writes
        raise UserError(f"{last} is damaged, or not a checkpoint: {new_run_advice(last)}")
    return last


def finish_checkpoints(cfg: DictConfig) -> None:
    """Give the checkpoints of a killed run their names, where they lack only these. For one process, in `alone_in`."""
    if cfg.resume:
        for path in checkpoints_in(cfg.paths.run):
            finish_replacing(path)


def decide(cfg: DictConfig) -> None:
    """Replace `resume=auto` by true where the run's folder holds a run, by false where it holds none.

    Raises:
        UserError: each run has another folder.
    """
    if cfg.resume == AUTO:
        if run_mode() == "RUN" and "${now" in run_folder_template():
            raise UserError(NEEDS_FOLDER)
        cfg.resume = agreed("resume", lambda: str(_holds_run(Path(cfg.paths.run)))) == "True"
        add_task_override(f"resume={str(cfg.resume).lower()}")  # for processes that the run starts, and for configs that it composes


def _holds_run(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / "checkpoints" / "last.ckpt").exists()


def check_settings(cfg: DictConfig) -> None:
    """Check that the run that is resumed began with the settings of `cfg`, apart from those that may change.

    With another number of processes `data.batch_size` is adapted, in place, see `ftlit.recipes.resuming.elastic`.

    Raises:
        UserError: the folder holds no run; the first setting that differs; `config.yaml` was edited.
    """
    stored = read_config(cfg.paths.run)
    if stored is None and _holds_run(Path(cfg.paths.run)):
        raise UserError(
            f"resuming this run needs {Path(cfg.paths.run, CONFIG)}, which is missing: "
            "restore it, or start a new run with another hydra.run.dir=..."
        )
    if stored is None:
        raise UserError(f"resume=true, but {cfg.paths.run} holds no run: give hydra.run.dir=... with the folder of the run to resume")
    changed = [change for change in stored.changes(cfg, (*MAY_CHANGE, *DATA_OPTIONS)) if not keeps_value(change)]
    if stored.began:
        changed = keep_batch(cfg, stored.began, changed)
    if not changed:
        return
    if stored.edited:
        texts = shorten((f"{name} is {old} in the file, {new} in this command" for name, old, new in changed), 3)
        raise UserError(
            f"{Path(cfg.paths.run, CONFIG)} was edited or damaged after the run wrote it: {texts}. A resumed run must keep its "
            "settings: restore the old settings in this file, or start a new run with another hydra.run.dir=..."
        )
    name, old, new = min(changed, key=lambda change: change.name.count("."))  # others may refer to a top-level one, as data.seed to seed
    words = [f"{each}={'null' if was is None else was}" for each, was, _ in changed if (each, was) in BEFORE_SEVERAL_CUTS.items()]
    value = " ".join(words) if name in BEFORE_SEVERAL_CUTS and words else "the old value"
    command = "" if name in BEFORE_SEVERAL_CUTS else _command_of(Path(cfg.paths.run))
    remedy = f"to resume the run: {command} resume=true" if command else f"give {value}, or start a new run"
    raise UserError(f"resume=true needs the same config: {name} was {old} and is now {new}; {remedy}")


def _command_of(folder: Path) -> str:
    """The command that began the run in a folder, or resumed it, without `resume`; empty where its report does not tell."""
    try:
        rows = dict(read_json(folder / "report" / REPORT)["plan"])
    except (UserError, KeyError, TypeError, ValueError):  # a run with report=false, or a damaged file
        return ""
    return re.sub(r" resume=\w+", "", str(rows.get("command", "")))


def keeps_value(change: Change) -> bool:
    """Whether `auto` stands for the value that the run began with; runs of earlier releases have none."""
    return change.name in RESOLVED_SETTINGS and (
        change.now == AUTO or (change.before is None and change.now == RESOLVED_SETTINGS[change.name])
    )


def changed_data_options(cfg: DictConfig) -> list[Change]:
    """The options of the data that have changed since the run that is resumed began."""
    stored = read_config(cfg.paths.run)
    return [change for change in stored.changes(cfg) if change.name in DATA_OPTIONS] if stored else []


def write_config(cfg: DictConfig) -> None:
    """Write `config.yaml`, composed and resolved, into the run's folder; in front the format number, the built-in parts by name, the chosen
    option of each group, and the number of processes. A run that is resumed with another number keeps the one that it began with.
    """
    began = began_with(cfg)
    processes = began.processes if began else processes_of(cfg)
    header = {REGISTERED_KEY: registered_parts(cfg), CHOSEN_KEY: chosen_options(), PROCESSES_KEY: processes}
    settings = began.restored_in(cfg) if began else cfg
    text = OmegaConf.to_yaml(OmegaConf.create(with_format(header))) + OmegaConf.to_yaml(settings, resolve=True)
    write_yaml(Path(cfg.paths.run, CONFIG), text)


def began_with(cfg: DictConfig) -> InitialProcesses | None:
    """Processes and batches with which the run that is resumed began; `None` for a new run, or where its folder does not tell."""
    stored = read_config(cfg.paths.run) if cfg.resume else None
    return stored.began if stored else None


@dataclass(frozen=True)
class StoredConfig:
    """What `config.yaml` holds.

    Attributes:
        settings: see `stable_settings`.
        chosen: option of each config group; empty where the file does not tell.
        edited: whether it is not as the run wrote it.
        processes: number of processes that the run began with; `None` where the file does not tell.
    """

    settings: DictConfig
    chosen: dict[str, Any]
    edited: bool
    processes: int | None = None

    @property
    def began(self) -> InitialProcesses | None:
        """Processes and batches with which the run began, if the file tells."""
        return None if self.processes is None else InitialProcesses(self.settings, self.processes)

    def changes(self, cfg: DictConfig, may_change: Iterable[str] = ()) -> list[Change]:
        """The settings that are others in `cfg`."""
        return changes(self.settings, resolved_settings(cfg), self.chosen, may_change)


def read_config(folder: str | Path) -> StoredConfig | None:
    """The config of the run in a folder; `None` where there is no `config.yaml`.

    Raises:
        UserError: this program cannot resume the run.
    """
    path = Path(folder, CONFIG)
    if not path.is_file():
        return None

    def refuse(_: object) -> Any:
        raise UserError(
            f"the run in {folder} is from an older version of ftlit and cannot be resumed: start a new run with another "
            "hydra.run.dir=... (ftlit predict, report and export still read the old one)"
        )

    try:
        config, edited = load_yaml(path, remedy="start a new run with another hydra.run.dir=..."), False
    except EditedFile as error:
        config, edited = error.config, True
    upgraded({FORMAT_KEY: config.pop(FORMAT_KEY, 0)}, path, refuse)
    chosen: Any = OmegaConf.to_container(config.pop(CHOSEN_KEY, OmegaConf.create({})))
    processes = config.pop(PROCESSES_KEY, None)
    for group, name in config.pop(REGISTERED_KEY, {}).items():  # their paths may be those of an earlier release
        config[group]["_target_"] = name
    upgrade_settings(config, chosen)
    return StoredConfig(stable_settings(config), chosen, edited, processes)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Keep other runs from training in this folder, for a block. The lock is the kernel's: it ends with the process.

    Raises:
        UserError: another run trains there.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder, ".lock"))
    try:
        lock.acquire(timeout=SECONDS_TO_END)
    except Timeout:
        raise UserError(f"another run is active in {folder}: wait until it ends, stop it, or give another hydra.run.dir=...") from None
    try:
        yield
    finally:
        lock.release()
