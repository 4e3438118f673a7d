"""Find the checkpoint that a run resumes from, check that its config is the same, and lock its folder."""

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

# of a run that is resumed: where and what is written, and who loads images (the seed is compared at its own name, not in callbacks)
MAY_CHANGE = ("resume", "sweep", "doctor", "paths", "callbacks", "logger", "data.num_workers", "cache.folder")

SECONDS_TO_END = 10.0  # that the worker processes of a killed run live on, and its locks with them


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """The checkpoint that this run resumes from; `None` for a new run, and for one that ended before its first step.

    Raises:
        UserError: the folder holds no run for `resume=true`, or holds one that a new run would overwrite; the checkpoint is damaged; the
            config differs from that of the run.
    """
    last = Path(cfg.paths.run, "checkpoints", "last.ckpt")
    if not cfg.resume:
        if last.exists():
            raise UserError(f"{cfg.paths.run} holds a run already: give resume=true to resume it, or another hydra.run.dir=")
        return None
    old = read_config(cfg.paths.run)
    if old is None:
        raise UserError(f"resume=true, but {cfg.paths.run} holds no run: give hydra.run.dir=, the folder of the run to resume")
    _check_same(old, OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))
    if not last.is_file():  # the run ended before its first step
        return None
    if not is_zipfile(last):  # what torch.save writes
        raise UserError(f"{last} is damaged, or not a checkpoint: begin a new run")
    return last


def write_config(cfg: DictConfig) -> None:
    """Write `config.yaml`, composed and resolved, with the format number in front, into the run's folder."""
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
    """Keep other runs from training in this folder, for a block. The lock is the kernel's: it ends with the process.

    Raises:
        UserError: another run trains there.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder, ".lock"))
    try:
        lock.acquire(timeout=SECONDS_TO_END)
    except Timeout:
        raise UserError(f"a run is still active in {folder}: wait for its end, stop it, or give another hydra.run.dir=") from None
    try:
        yield
    finally:
        lock.release()


def _check_same(old: Any, given: Any) -> None:
    before, now = dict(_values(old)), dict(_values(given))
    for name in dict.fromkeys([*before, *now]):
        kept = any(name == known or name.startswith(f"{known}.") for known in MAY_CHANGE)
        if not kept and before.get(name) != now.get(name):
            raise UserError(
                f"resume=true needs the config of the run: {name} was {before.get(name)}, now {now.get(name)}; give the old value, or "
                "begin a new run"
            )


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of each leaf."""
    if not isinstance(node, DictConfig):
        yield name, node
        return
    for key in map(str, node):
        yield from _values(node[key], f"{name}.{key}" if name else key)
