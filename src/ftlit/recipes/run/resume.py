"""Which checkpoint a run goes on from, and whether it is the same run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.formats import KEY as FORMAT_KEY
from ftlit.formats import upgraded, with_format

CONFIG = "config.yaml"

# where and what is written, and who loads; the seed that callbacks take is compared where it stands
MAY_CHANGE = ("resume", "sweep", "doctor", "paths", "callbacks", "logger", "data.num_workers", "cache.folder")

ENDING = 10.0  # seconds that the worker processes of a run that was killed live on, and its locks with them


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """The checkpoint that this run goes on from; `None` for a new one, and for one that ended before its first step.

    Raises:
        UserError: there is no run where `resume=true` wants one, or one where a new run would overwrite it; it is damaged; the config
            is not the one that the run began with.
    """
    last = Path(cfg.paths.run, "checkpoints", "last.ckpt")
    if not cfg.resume:
        if last.exists():
            raise UserError(f"{cfg.paths.run} holds a run already: give resume=true to go on with it, or another hydra.run.dir=")
        return None
    began_with = read_config(cfg.paths.run)
    if began_with is None:
        raise UserError(f"resume=true, but {cfg.paths.run} holds no run: give hydra.run.dir=, the folder of the run to go on with")
    _check_same(began_with, OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))
    if not last.is_file():  # it ended before its first step
        return None
    if not is_zipfile(last):  # what torch.save writes
        raise UserError(f"{last} is damaged, or no checkpoint: begin a new run")
    return last


def write_config(cfg: DictConfig) -> None:
    """`config.yaml`, composed and resolved, into the run's folder, with the format number in front."""
    Path(cfg.paths.run, CONFIG).write_text(OmegaConf.to_yaml(with_format({})) + OmegaConf.to_yaml(cfg, resolve=True))


def read_config(folder: str | Path) -> Any:
    """`config.yaml` of the run in a folder; `None` where there is none. Raises `UserError` for a run that this program cannot resume."""
    path = Path(folder, CONFIG)
    if not path.is_file():
        return None

    def refuse(_: object) -> Any:
        raise UserError(
            f"resume=true: an earlier ftlit began the run in {folder}: it cannot be resumed, only read (predict, report, export)"
        )

    config: Any = OmegaConf.load(path)
    upgraded({FORMAT_KEY: config.pop(FORMAT_KEY, 0)}, path, refuse)
    return config


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """While this lasts no other run trains in this folder. A kernel lock: it ends with the process.

    Raises:
        UserError: another one does.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder, ".lock"))
    try:
        lock.acquire(timeout=ENDING)
    except Timeout:
        raise UserError(f"a run is still going on in {folder}: wait for its end or stop it, or give another hydra.run.dir=") from None
    try:
        yield
    finally:
        lock.release()


def _check_same(began_with: Any, given: Any) -> None:
    before, now = dict(_values(began_with)), dict(_values(given))
    for name in dict.fromkeys([*before, *now]):
        kept = any(name == known or name.startswith(f"{known}.") for known in MAY_CHANGE)
        if not kept and before.get(name) != now.get(name):
            raise UserError(
                f"resume=true goes on with the run as it was: {name} was {before.get(name)}, now {now.get(name)}; give the old value, "
                "or begin a new run"
            )


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of every leaf."""
    if not isinstance(node, DictConfig):
        yield name, node
        return
    for key in map(str, node):
        yield from _values(node[key], f"{name}.{key}" if name else key)
