"""Find the checkpoint that a run resumes from, check that its config is the same, and lock its folder."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zipfile import is_zipfile

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.formats import KEY as FORMAT_KEY
from ftlit.formats import upgraded, with_format
from ftlit.recipes.config.hydra_internals import add_task_override, run_folder_template, run_mode
from ftlit.recipes.config.yaml_file import load_yaml, write_yaml
from ftlit.recipes.run.launched import NEEDS_FOLDER, agreed
from ftlit.renamed import new_path

CONFIG = "config.yaml"
REGISTERED_KEY = "registered"  # of the built-in parts, in `config.yaml`

# of a run that is resumed: where and what is written, and who loads images (the seed is compared at its own name, not in callbacks)
MAY_CHANGE = (
    *("resume", "sweep", "doctor", "paths", "callbacks", "logger", "data.num_workers", "cache.folder", "cache.trust"),
    *("rank_timeout", "trainer.default_root_dir"),
)
DATA_PATHS = ("data.root", "data.csv", "data.val_csv", "data.test_csv")  # may change where the images are the same, see `data_record`

RESUMABLE_RECIPES = ("finetune", "pretrain")  # those whose runs leave a checkpoint
AUTO = "auto"  # resume=auto

SECONDS_TO_END = 10.0  # that the worker processes of a killed run live on, and its locks with them


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """The checkpoint that this run resumes from; `None` for a new run, and for one that ended before its first step.

    Raises:
        UserError: the folder holds no run for `resume=true`, or holds one that a new run would overwrite; the checkpoint is damaged; the
            config differs from that of the run.
    """
    last, best = (Path(cfg.paths.run, "checkpoints", f"{name}.ckpt") for name in ("last", "best"))
    if not cfg.resume:
        if last.exists() or best.exists():
            raise UserError(f"{cfg.paths.run} holds a run already: give resume=true to resume it, or another hydra.run.dir=")
        return None
    old = read_config(cfg.paths.run)
    if old is None:
        raise UserError(f"resume=true, but {cfg.paths.run} holds no run: give hydra.run.dir=, the folder of the run to resume")
    _check_same(old, resolved_settings(cfg))
    if not last.exists():  # the run ended before its first step
        if best.exists():
            raise UserError(f"{last}, from which the run would go on, is missing: put it back, or begin a new run")
        return None
    if last.is_file() and not is_zipfile(last):  # what torch.save writes; a folder: sharded
        raise UserError(f"{last} is damaged, or not a checkpoint: begin a new run")
    return last


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


def changed_data_paths(cfg: DictConfig) -> list[tuple[str, Any, Any]]:
    """Name, value of the run that is resumed and value now of each path of the data that has changed."""
    old, new = dict(_values(read_config(cfg.paths.run))), dict(_values(resolved_settings(cfg)))
    return [(name, old.get(name), new.get(name)) for name in DATA_PATHS if old.get(name) != new.get(name)]


def write_config(cfg: DictConfig) -> None:
    """Write `config.yaml`, composed and resolved, into the run's folder; in front the format number, and the built-in parts by name."""
    header = OmegaConf.create(with_format({REGISTERED_KEY: _registered_parts(cfg)}))
    write_yaml(Path(cfg.paths.run, CONFIG), OmegaConf.to_yaml(header) + OmegaConf.to_yaml(cfg, resolve=True))


def read_config(folder: str | Path) -> Any:
    """The settings of the run in a folder, see `stable_settings`; `None` where there is no `config.yaml`.

    Raises:
        UserError: this program cannot resume the run.
    """
    path = Path(folder, CONFIG)
    if not path.is_file():
        return None

    def refuse(_: object) -> Any:
        raise UserError(
            f"resume=true: an earlier ftlit began the run in {folder}: it cannot be resumed, only read (predict, report, export)"
        )

    config: Any = load_yaml(path, remedy="begin a new run with another hydra.run.dir=")
    upgraded({FORMAT_KEY: config.pop(FORMAT_KEY, 0)}, path, refuse)
    for group, name in config.pop(REGISTERED_KEY, {}).items():  # their paths may be those of an earlier release
        config[group]["_target_"] = name
    return stable_settings(config)


def resolved_settings(cfg: DictConfig) -> DictConfig:
    """The settings of a composed config, resolved as `config.yaml` holds them, to compare with those of `read_config`."""
    resolved: Any = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    return stable_settings(resolved)


def stable_settings(cfg: DictConfig) -> DictConfig:
    """A copy without the modules of ftlit, so that a class that moves changes no setting.

    The `_target_` of a registered part is `group:name`, that of other classes and functions of ftlit `ftlit:name`. A user's, and those of
    other packages, keep their import path.
    """
    settings: Any = OmegaConf.create(_without_modules(OmegaConf.to_container(cfg)))
    for group, name in _registered_parts(cfg).items():
        settings[group]["_target_"] = name
    return settings  # type: ignore[no-any-return]


def settings_text(settings: DictConfig, may_change: Iterable[str] = MAY_CHANGE) -> str:
    """Settings, see `stable_settings`, as text: all but those that may change when a run is resumed."""
    kept = settings.copy()
    for name in may_change:
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(kept, parent) if parent else kept
        if isinstance(node, DictConfig) and leaf in list(map(str, node)):  # `in` and `pop` would resolve the value
            del node[leaf]
    return OmegaConf.to_yaml(kept, sort_keys=True)


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


def _without_modules(node: Any) -> Any:
    """A container in which each `_target_` within ftlit is `ftlit:name`. An old name becomes the present one."""
    if isinstance(node, list):
        return [_without_modules(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    path = str(node.get("_target_"))
    short = {"_target_": f"ftlit:{(new_path(path) or path).rpartition('.')[2]}"} if path.startswith("ftlit.") else {}
    return {key: _without_modules(value) for key, value in node.items()} | short


def _registered_parts(cfg: DictConfig) -> dict[str, str]:
    """Config group -> `group:name` of each built-in part that is registered."""
    from ftlit.recipes.config.validate import REGISTRIES  # here, so that --help stays fast

    settings: Any = OmegaConf.to_container(cfg)
    nodes = {group: settings[group] for group in REGISTRIES if isinstance(settings.get(group), dict)}
    names = {group: REGISTRIES[group].name_of(_built_in_part(str(node.get("_target_")))) for group, node in nodes.items()}
    return {group: f"{group}:{name}" for group, name in names.items() if name is not None}


def _built_in_part(path: str) -> object:
    """The object at a path within ftlit; `None` for a user's, which is not imported before it is built."""
    if not path.startswith("ftlit."):
        return None
    try:
        return resolve_name(new_path(path) or path)
    except (ImportError, AttributeError):
        return None


def _check_same(old: Any, given: Any) -> None:
    before, now = dict(_values(old)), dict(_values(given))
    for name in dict.fromkeys([*before, *now]):
        kept = any(name == known or name.startswith(f"{known}.") for known in (*MAY_CHANGE, *DATA_PATHS))
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
