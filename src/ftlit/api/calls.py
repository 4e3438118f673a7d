"""`finetune`, `probe` and `advise`: training, probes and advice of the command line as functions."""

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ftlit.api.results import Advised, Finetuned, Probed
from ftlit.api.words import AnyPath, Options, words_of
from ftlit.errors import UserError
from ftlit.plain_arguments import known_arguments

IN_OPTIONS = {  # arguments that users expect -> the option that they stand for
    **{name: "optimizer.lr" for name in ("lr", "learning_rate")},
    **{name: f"data.{name}" for name in ("batch_size", "augment", "mix", "num_workers", "per_class", "val_fraction", "test_fraction")},
    **{name: f"trainer.{name}" for name in ("precision", "devices", "accelerator")},
    **{name: name for name in ("seed", "head", "schedule", "loss", "optimizer", "trainer", "resume", "final")},
    "weight_decay": "optimizer.weight_decay",
}
_named = known_arguments(max_epochs="give epochs=...", **{name: f"give options={{{option!r}: ...}}" for name, option in IN_OPTIONS.items()})


@_named
def finetune(
    data: AnyPath | None = None,
    *,
    backbone: str | None = None,
    scenario: str | None = None,
    init_from: AnyPath | None = None,
    epochs: int | None = None,
    folder: AnyPath | None = None,
    options: Options | None = None,
) -> Finetuned:
    """Fine-tune a pretrained network: `ftlit train` as a function, with its plan, table, report and run folder.

    Args:
        data: a folder with one folder per class (with or without `train`, `val` and `test` above them), a csv file with a column `path`
            or `text`, or the name of an option of the group `data`; `None`: `digits`.
        backbone: the name of an option of the group `backbone`, such as `resnet50`; `None`: `glyph`, or that of `options`.
        scenario: `small_similar`, `small_different`, `large_similar`, `large_different`; `None`: `auto`, which measures what suits the
            data.
        init_from: the folder of a run to go on from: its backbone, head, recipe and split; `None`: pretrained weights.
        epochs: the number of epochs where layers are trained; `None`: that of the scenario.
        folder: of the run; `None`: `runs/DATE/TIME` in the current folder.
        options: any other option by its name on the command line: `{"optimizer.lr": 1e-3, "head": "linear"}`.

    Returns:
        The run: its metrics, table, advice and report, its network, predictions and exports.

    Raises:
        UserError: a mistake in the arguments or the data, in one line.
        KeyboardInterrupt: the run was interrupted; the last line before the traceback is the call that continues it (`{"resume": True}`).

    Example:
        >>> result = ftlit.finetune("photos", backbone="resnet50")  # doctest: +SKIP
        >>> result.predict("new_photos")  # doctest: +SKIP
    """
    named = {"backbone": backbone, "scenario": scenario, "init_from": init_from, "trainer.max_epochs": epochs}

    def resume_call(run: Path) -> str:
        arguments = {"backbone": backbone, "scenario": scenario, "init_from": init_from, "epochs": epochs, "folder": run}
        given = {name: value for name, value in (options or {}).items() if name != "hydra.run.dir"}
        shown = [f"{name}={_shown(value)}" for name, value in arguments.items() if value is not None]
        entries = ", ".join(f"{name!r}: {_shown(value)}" for name, value in {**given, "resume": True}.items())
        return f"ftlit.finetune({', '.join([*([] if data is None else [_shown(data)]), *shown])}, options={{{entries}}})"

    return Finetuned(_run("finetune", data, named, folder, options, resume_call))


@_named
def probe(
    data: AnyPath | None = None, *, backbone: str | None = None, folder: AnyPath | None = None, options: Options | None = None
) -> Probed:
    """Fit linear probes at each layer of a backbone, on features of one pass: `recipe=probe` as a function.

    Args:
        data: see `finetune`.
        backbone: see `finetune`.
        folder: see `finetune`.
        options: see `finetune`; `{"probe.kinds": ["softmax", "ridge"]}` for instance.

    Returns:
        The chosen probe, and a table of all.

    Raises:
        UserError: a mistake in the arguments or the data, in one line.
    """
    return Probed(_run("probe", data, {"backbone": backbone}, folder, options))


@_named
def advise(
    data: AnyPath | None = None, *, backbone: str | None = None, folder: AnyPath | None = None, options: Options | None = None
) -> Advised:
    """Measure, without training, which scenario suits the data: `ftlit advise` as a function.

    Args:
        data: see `finetune`.
        backbone: see `finetune`.
        folder: see `finetune`.
        options: see `finetune`.

    Returns:
        The advised scenario and cut, and a table of what was measured.

    Raises:
        UserError: a mistake in the arguments or the data, in one line.
    """
    return Advised(_run("advise", data, {"backbone": backbone}, folder, options))


def _shown(value: Any) -> str:
    """A value as it is typed in Python, a path as a text."""
    return repr(fspath(value) if isinstance(value, PathLike) else value)


def _run(
    recipe: str,
    data: AnyPath | None,
    named: Options,
    folder: AnyPath | None,
    options: Options | None,
    resume_call: Callable[[Path], str] | None = None,
) -> Path:
    if not isinstance(options, Mapping | None):
        raise UserError(f'options={options!r}: give a dict such as {{"optimizer.lr": 1e-3}}')
    if options and "recipe" in options:
        raise UserError(
            f"options: this function always runs recipe={recipe}, so leave recipe out; other recipes are other functions, such as finetune"
        )
    from ftlit.api.run_here import run_here  # here: it imports Hydra

    return run_here(words_of(data, {"recipe": recipe, **named, "hydra.run.dir": folder}, options), resume_call)
