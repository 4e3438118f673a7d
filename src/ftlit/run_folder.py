"""The files of a run's folder that several parts of the program read, and the names by which such a folder is recognised."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ftlit.errors import UserError, closest_path, shorten
from ftlit.files import part_of
from ftlit.formats import DamagedFile, JsonObject, read_json, write_json
from ftlit.formatting import shell_word, shown

DATA = "data.json"
RUN = "run"  # the key of the digest that identifies a run, in data.json and in the state of a checkpoint
RUN_STATE = "exact_resume"  # the key of that state in a checkpoint
RESULT = "result.json"
IGNORED = "ignored"  # in `result.json`: names of given options that a run without gradient training does not read
BASELINE = "linear_probe"  # the name of its checkpoint, and what stands in front of its metrics in `result.json`
TIE_BREAK = "val/loss"  # the lower one is better where epochs, or settings, are equal by the metric that ranks them
TRAINED = "trained/val/accuracy"  # in `result.json`: of the best epoch of a run with a baseline
TRAIN_IMAGES = "train/images"  # in `result.json`: the number of training images, after `data.per_class`
PROBE_LAYERS = "probe_layers.csv"  # of `recipe=probe`, and of a sweep over it: a row for each layer
# in `result.json` of `recipe=probe`: where the held-out accuracy is from, and of how many probes it is the best
HELD_OUT_BY, BEST_OF, CROSS_VALIDATION = "held_out/by", "held_out/best_of", "cross-validation"
ADVICE = "advice.json"
BACKBONE = "backbone.json"  # what `backbone=auto` measured and chose
COMMAND = "command.json"  # the command of the run, and its words, with which `again=RUN` repeats it
SHARDS_META = "meta.ckpt"  # in a folder of shards, which is a checkpoint of training with sharded weights
REPORT = "run.json"  # in `report/`

DEFAULT_RUNS = Path("runs")  # where runs are, by default in folders of their day
FOLDER_OF_A_RUN = "the folder that ftlit train printed at its end"

Result = JsonObject | list[JsonObject]

# file -> text in it, of runs, sweeps, and recipes that only measure: files of other programs have the same names, but not this text
SIGNS = {
    "config.yaml": b"_target_: ftlit.",
    "multirun.yaml": b"_target_: ftlit.",
    "job.json": b'"overrides"',
    "split.json": b'"hashes"',
    ADVICE: b'"scenario"',
    "lr_find.csv": b"rate,loss,smoothed",
}
MAX_READ = 1 << 20  # bytes in which the text is searched
FOLDERS = frozenset({"checkpoints", "layers", "report", "tensorboard", "wandb"})  # in the folder of a run
FIGURES = frozenset({"lr_find.png", "pretrain.png", "probe.png", "sweep.png"})


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run of this program, by the text of its files. Files that cannot be read do not count."""
    return any(_holds(folder / name, text) for name, text in SIGNS.items())


def existing_run(run: str | Path) -> Path:
    """The path of a run, or of a checkpoint. Raises `UserError` where nothing is there, with the run that was probably meant."""
    path = Path(run).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {path}{meant_run(path)}")
    return path


def meant_run(path: Path) -> str:
    """The end of an error for a run that does not exist: the run beside it with a similar name, or else the newest ones; may be empty."""
    if near := closest_path(path, is_run_folder):
        return f": did you mean {shown(near)}?"
    runs = runs_near(path.parent)
    return f": give a run, such as {runs}" if runs else ""


def no_run(folder: Path, what: str = "a run") -> UserError:
    """The error for a folder that is there, but is none of a run."""
    runs = runs_near(folder)
    return UserError(f"the folder {shown(folder)} is not that of {what}: give {f'one, such as {runs}' if runs else FOLDER_OF_A_RUN}")


def runs_near(folder: Path) -> str:
    """The newest runs in a folder, or else in `runs` in the current folder, as text; empty where there are none."""
    for place, pattern in ((folder, "*"), (DEFAULT_RUNS, "*"), (DEFAULT_RUNS, "*/*")):
        with suppress(OSError):
            if found := [inner for inner in place.glob(pattern) if is_run_folder(inner)]:
                return shorten(map(shown, sorted(found, key=_newest_first)), most=3)
    return ""


def _newest_first(run: Path) -> tuple[bool, float]:
    """The order of runs in a message: those with checkpoints before sweeps and measurements."""
    return not (run / "checkpoints").is_dir(), -run.stat().st_mtime


def _holds(path: Path, text: bytes) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return text in file.read(MAX_READ)
    except OSError:
        return False


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a path is a complete folder of shards."""
    return (path / SHARDS_META).is_file()


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is there, also a folder of shards that lacks only its name, see `finish_replacing`."""
    return is_sharded_checkpoint(part_of(path)) or path.exists()  # in this order: it may get its name in between


def finish_replacing(folder: Path) -> None:
    """Give a complete folder its name, where the program was killed between removing the one before and renaming it.

    For one process, which has the lock of the run's folder.
    """
    if not folder.exists() and is_sharded_checkpoint(beside := part_of(folder)):
        with suppress(FileNotFoundError):
            beside.rename(folder)


def identity_of(folder: Path) -> str | None:
    """The digest that identifies the run in a folder; `None` where it is not known."""
    try:
        found = read_json(folder / DATA)
    except UserError:  # missing or damaged: a resumed run says so
        return None
    return found.get(RUN) if isinstance(found, dict) else None


def write_result(folder: str | Path, result: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write `result.json`: metrics by name, or a list of such mappings, each of which carries the format."""
    write_json(Path(folder, RESULT), result if isinstance(result, Mapping) else [dict(entry) for entry in result])


def read_result(folder: str | Path) -> Result | None:
    """`result.json` without the format; `None` where there is none. Raises `UserError` for a damaged one, or one of a newer program."""
    path = Path(folder, RESULT)
    return read_json(path, remedy="restore it, or train again") if path.is_file() else None


def result_checkpoint(folder: Path) -> Path:
    """The checkpoint of the result of a run; the file may be missing.

    It is that of the best epoch, or the last one of a run that has ended and by its config keeps no best epoch (`callbacks.best=null`).
    """
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    ended_without_best = not best.exists() and (folder / RESULT).is_file() and _keeps_no_best(folder)
    return last if ended_without_best else best


def _keeps_no_best(folder: Path) -> bool:
    """Whether the config of a run has no callback that keeps the best epoch. A config that cannot be read counts as one that has it."""
    try:
        callbacks = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["callbacks"]
        return callbacks.get("best") is None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return False


def keeps_baseline(metrics: Mapping[str, Any]) -> bool:
    """Whether the result of a run, the metrics of `result.json`, is the linear probe before training."""
    probe = {name.removeprefix(f"{BASELINE}/"): value for name, value in metrics.items() if name.startswith(f"{BASELINE}/")}
    shared = [name for name in probe if name in metrics]  # the trial of an augmentation is of the probe only
    return bool(shared) and all(metrics[name] == probe[name] for name in shared)


def write_advice(folder: str | Path, advice: Mapping[str, Any], measurements: Mapping[str, Any] | None) -> None:
    """Write `advice.json`: the advised scenario, and the measurements it follows from, where there are any."""
    write_json(Path(folder, ADVICE), {"advice": advice, "measurements": measurements})


def read_advice(folder: str | Path) -> JsonObject | None:
    """`advice.json`: `advice` and `measurements`; `None` where there is none.

    Raises:
        UserError: it is damaged, or a newer program wrote it.
    """
    path = Path(folder, ADVICE)
    if not path.is_file():
        return None
    remedy = "remove this file; to resume the run, give scenario=NAME with the scenario that the run printed"
    content = read_json(path, _advice_from_0, remedy=remedy)
    if not isinstance(content, dict) or not isinstance(content.get("advice"), dict):
        raise DamagedFile(path, "it holds no advice", remedy)
    return content


def _advice_from_0(content: JsonObject) -> JsonObject:
    """In format 0 the measurements are called `measured`, and two fields of the advice have other names."""
    renamed = {"solvable": "fits_probe_head", "holds_out": "holds_out_images"}
    advice = {renamed.get(name, name): value for name, value in content["advice"].items()}
    return {"advice": advice, "measurements": content.get("measured")}


def write_backbone_choice(folder: str | Path, choice: Mapping[str, Any]) -> None:
    """Write `backbone.json`: the chosen backbone, the words of the command line that name it, and the measurements of all candidates."""
    write_json(Path(folder, BACKBONE), choice)


def read_backbone_choice(folder: str | Path) -> JsonObject | None:
    """`backbone.json` without the format; `None` where there is none.

    Raises:
        UserError: it is damaged, or a newer program wrote it.
    """
    path = Path(folder, BACKBONE)
    if not path.is_file():
        return None
    remedy = "remove this file; to resume the run, give backbone=NAME with the backbone that the run printed"
    content = read_json(path, remedy=remedy)
    if not isinstance(content, dict) or not {"chosen", "words", "candidates"} <= set(content):
        raise DamagedFile(path, "it holds no choice of a backbone", remedy)
    return content


def new_run_advice(path: Path) -> str:
    """How to go on without a checkpoint: from the weights of the best epoch beside it, where there are any."""
    best = path.with_name("best.ckpt")
    usable = best != path and best.is_file() and not _is_partial(path.parent.parent)
    weights = f" and with {shell_word(f'backbone.weights={best}')}, the best weights of the old run" if usable else ""
    return f"start a new run with another hydra.run.dir=...{weights}"


def _is_partial(folder: Path) -> bool:
    """Whether the checkpoints of a run cannot be read as weights of a backbone: slim ones, and those without batch norms."""
    try:
        lines = (folder / "config.yaml").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return "checkpoint: slim" in lines or "batchnorm: affine" in lines
