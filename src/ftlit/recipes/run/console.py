"""What a person reads: the plan before a run, the table after it; and the run's folder in plain files."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ftlit.errors import shorten
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.plan import Plan
from ftlit.formatting import size_in_words
from ftlit.lit.datamodules.feature_data import FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.recipes.config.overrides import OF_TRAINING, arguments, given, program, replaced
from ftlit.recipes.run.resume import write_config
from ftlit.run_folder import write_result

SOLVED = "solved on features of training {noun}, without augmentation; its L2 penalty is {l2}"
TAKES_VAL = "once val has judged it, it is solved on val too; "
LEFT_OUT = "stages that train it alone are left out (head=linear keeps them)"
ALONE = "nothing is trained: without effect are {} (head=linear trains it by steps, scenario=large_similar all layers)"
TOLD = ("scenario", "experiment", "backbone", "head", "loss", "data", "schedule", "optimizer", "lr_scheduler", "cache", "trainer")


def write_folder(cfg: DictConfig, data: Any) -> None:
    """`config.yaml`, composed and resolved, and `class_names.json` into the run's folder."""
    folder = Path(cfg.paths.run)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(cfg)
    (folder / "class_names.json").write_text(json.dumps(data.class_names, ensure_ascii=False, indent=1))


def write_results(cfg: DictConfig, results: Mapping[str, float]) -> None:
    """`result.json`: the metrics of the best checkpoint on val and test, into the run's folder."""
    write_result(cfg.paths.run, results)


@rank_zero_only
def say_interrupted(cfg: DictConfig) -> None:
    """Print how to go on after Ctrl-C."""
    there = Path(cfg.paths.run, "checkpoints", "last.ckpt").exists()
    where = "interrupted; the last checkpoint is in place" if there else "interrupted before the first step"
    console().print(escape(f"{where}. To go on: {resume_command(cfg)}"), soft_wrap=True)


def say_lost(cfg: DictConfig, rank: int) -> None:
    """Print, on stderr, that another process died."""
    print(f"ftlit: process {rank} ends: another one died, its error stands above. To go on: {resume_command(cfg)}", file=sys.stderr)


def plan_rows(
    cfg: DictConfig,
    backbone: Backbone,
    data: Any,
    plan: Plan,
    sources: Sequence[StageInput],
    *,
    solves: bool = False,
    takes_val: bool = False,
    trains: bool = True,
    processes: int = 1,
) -> list[tuple[str, str]]:
    """What is going to happen: weights, input, data, whether the head is solved, what trains from when on, what processes exchange."""
    spec = data.input_spec if isinstance(data, ImageData | FeatureData) else backbone.input_spec
    shape = "x".join(map(str, backbone.on_meta(spec.shape)[backbone.cuts[-1]][0]))
    size = sum(parameter.numel() for parameter in backbone.parameters())
    choices = HydraConfig.get().runtime.choices
    l2_penalties: Sequence[float] = OmegaConf.select(cfg, "probe.l2") or []
    l2 = f"{l2_penalties[0]:g}" if len(l2_penalties) == 1 else "chosen by cross-validation among them"
    alone = TAKES_VAL * takes_val + ALONE.format(", ".join(given(*OF_TRAINING)) or "optimizer, lr_scheduler, loss and epochs")
    return [
        ("ftlit", ", ".join(f"{group}={choices[group]}" for group in TOLD if choices.get(group))),
        *(("note", line) for line in replaced(cfg)),
        (
            "backbone",
            f"{cfg.backbone.get('name', cfg.backbone._target_)}: {shorten(backbone.cuts)}; {size:,} parameters; "
            f"weights: {backbone.origin.describe()}" + (f"; reinitialized: {shorten(backbone.reinit)}" if backbone.reinit else ""),
        ),
        ("input", spec.told),
        (
            "features",
            f"{shape} at cut {backbone.cuts[-1]}, {backbone.num_features} features for the head ({cfg.head._target_.rpartition('.')[2]})",
        ),
        *data_rows(data, spec.noun),
        *([("head", f"{SOLVED.format(noun=spec.noun, l2=l2)}; {LEFT_OUT if trains else alone}")] if solves else []),
        *(
            (f"stage {i}", f"{line}; {_reduces(size) if processes > 1 else ''}from {sources[i].reason if sources else spec.noun}")
            for i, (line, size) in enumerate(zip(plan.stages, plan.reduced, strict=True))
            if trains
        ),
        *([("cache", _cache(data, sources))] if sources and trains else []),
        ("run", f"{_epochs(cfg.trainer.max_epochs) if trains else 'no epoch'}, seed {cfg.seed}, folder {cfg.paths.run}"),
        *([("compile", "backbone and head, anew for each stage: its first steps take longer")] if cfg.compile else []),
    ]


def data_rows(data: Any, noun: str) -> list[tuple[str, str]]:
    """How many there are of each split and class, and what is to be known of them."""
    splits = "; ".join(f"{split} {sum(counts.values()):,}" for split, counts in data.counts.items())
    return [
        ("data", f"{splits} {noun} of {data.num_classes} classes"),
        ("classes", shorten((f"{name} {count:,}" for name, count in data.counts["train"].items()), most=12)),
        *(("note", note) for note in data.notes),
    ]


def say_plan(cfg: DictConfig, rows: Sequence[tuple[str, str]], plan: Plan, resume_from: Path | None, *, trains: bool = True) -> None:
    """Print these rows, how to resume, what trains from when at what rate, and what the doctor found."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[bold]{name}[/bold]", escape(text))
    console().print(table)
    goes_on = f"goes on from {resume_from}" if resume_from else resume_command(cfg)
    console().print(f"[bold]resume[/bold]    {escape(goes_on)}", soft_wrap=True)  # one line, to be copied
    if trains:
        console().print(layers_table(plan))
    for warning in plan.warnings:
        console().print(f"[bold]doctor[/bold]  {escape(warning)}", soft_wrap=True)


def layers_table(plan: Plan) -> Table:
    """A row a layer, top first: from which stage it trains, in which mode, in which groups, at which base rate, with which batch norm."""
    table = Table("layer", "parameters", "trains from", "mode by stage", "batch norm by stage", "group", "base rate", box=SIMPLE_HEAD)
    for row in reversed(plan.rows):
        table.add_row(
            row.layer,
            f"{row.size:,}",
            "-" if row.first is None else f"stage {row.first}",
            _by_stage(row.modes) if row.size else "-",
            _by_stage(row.batchnorm) or "-",
            shorten(row.groups, most=3),
            " ".join(f"{rate:.1e}" for rate in row.rates),
        )
    return table


def _reduces(size: int) -> str:
    return f"ddp reduces {size_in_words(size)} a step; "


def _epochs(number: int | None) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"


def _by_stage(values: Sequence[str]) -> str:
    """`eval 0-1, train 2`."""
    runs = [(value, [i for i, _ in same]) for value, same in groupby(enumerate(values), key=lambda pair: pair[1])]
    return ", ".join(f"{value} {places[0]}" + (f"-{places[-1]}" if len(places) > 1 else "") for value, places in runs)


def _cache(data: Any, sources: Sequence[StageInput]) -> str:
    """Where features are stored, how much at most, and what such stages see."""
    size = sum({source.spec: source.bytes for source in sources}.values())
    if not size:
        return "no stage trains from features"
    line = f"features take up to {size_in_words(size)} in {data.store.folder}; stages that train from them see "
    if not data.augments:
        return line + "the evaluation view"
    if data.views > 1:
        return line + f"augmented views of each, up to {data.views}, in turn by epoch (cache=none: fresh ones)"
    return line + "the evaluation view, without augmentation (cache=none: fresh augmentation; cache=views: stored views of it)"


def resume_command(cfg: DictConfig) -> str:
    """The command that goes on with this run after it was interrupted."""
    spec = find_spec("ftlit.cli.train")  # the file that `ftlit train` runs
    words = ["ftlit", "train"] if spec and program() == [spec.origin] else ["python", *program()]
    return shlex.join([*words, *(word for word in arguments(cfg.paths.run) if not word.startswith("resume=")), "resume=true"])


def say_results(cfg: DictConfig, results: Mapping[str, float], time: str) -> None:
    """Print the table of the best checkpoint on val and test, the time in words, and where everything is."""
    table = Table("split", "accuracy", "macro F1", "loss")
    for split in ("val", "test"):
        table.add_row(split, *(f"{results[f'{split}/{metric}']:.4f}" for metric in ("accuracy", "f1", "loss")))
    console().print(table)
    console().print(f"{time}; best and last checkpoint, metrics.csv, config.yaml: {escape(str(cfg.paths.run))}", soft_wrap=True)


def console() -> Console:
    """Wide enough for the plan where no terminal says otherwise."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)
