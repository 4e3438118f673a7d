"""Print the results of a run, and the advice on a scenario."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from ftlit.errors import shorten
from ftlit.formatting import duration_in_words, shell_command
from ftlit.intervals import accuracy_interval
from ftlit.printing import print_line, show
from ftlit.probes.advice import Advice, Measurements
from ftlit.recipes.config.overrides import search_words, typed_command
from ftlit.recipes.console.start_comparison import StartComparison
from ftlit.report.scores import ClassScore
from ftlit.run_folder import BASELINE


def print_results(
    cfg: DictConfig,
    results: Mapping[str, float],
    notes: Sequence[str],
    images: Mapping[str, int],
    fitted_on: Mapping[str, str],
    baseline: Mapping[str, float] | None = None,
    start: StartComparison | None = None,
    low: Sequence[ClassScore] = (),
    outcome: str = "",
) -> None:
    """Print the metrics of the best checkpoint on val and test, notes on the run, and its folder.

    Args:
        cfg: of the run.
        results: `test/accuracy` and so on.
        notes: on the run.
        images: split -> number of images that its accuracy is the share of; empty: no intervals.
        fitted_on: split -> the splits on which the model of its row was trained or fitted.
        baseline: metrics of the linear probe before training, where there is one.
        start: the comparison with the run of `init_from`, where there is one.
        low: the classes with a low recall on test, the lowest first.
        outcome: why the results are not those of the trained network; empty: they are.
    """
    intervals = ["95 % interval of accuracy"] if images else []  # programs read the columns before it
    table = Table("split", "accuracy", "macro F1", "loss", *intervals, "fitted on")
    for split in ("val", "test"):
        accuracy, f1, loss = (f"{results[f'{split}/{metric}']:.4f}" for metric in ("accuracy", "f1", "loss"))
        bounds = ["{:.3f} to {:.3f}".format(*accuracy_interval(results[f"{split}/accuracy"], images[split]))] if images else []
        table.add_row(split, accuracy, f1, loss, *bounds, fitted_on[split])
    for name, accuracy, interval in start.rows() if start else ():
        table.add_row(name, accuracy, "", "", *([interval] if images else []), "")
    show(table)
    if low:
        classes = (f"{score.name} ({round(score.recall * score.images):,} of {score.images:,} correct)" for score in low)
        print_line(f"low recall on test: {shorten(classes, most=5)}")
    if start:
        print_line(start.describe())
    if baseline:
        changes = (f"{split} {baseline[f'{split}/accuracy']:.4f} -> {results[f'{split}/accuracy']:.4f}" for split in ("val", "test"))
        print_line(f"linear probe -> fine-tuned: accuracy on {', '.join(changes)}")
    if outcome:
        print_line(outcome)
    names = [name for name in ("best", "last", BASELINE) if Path(cfg.paths.run, "checkpoints", f"{name}.ckpt").exists()]
    checkpoints = " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    files = [*([f"{checkpoints} checkpoint"] if checkpoints else []), "metrics.csv", "config.yaml"]
    print_line(f"{'; '.join(notes)}; {', '.join(files)}: {cfg.paths.run}")


def print_interrupted_results(results: Mapping[str, float], fitted_on: Mapping[str, str], text: str) -> None:
    """Print the metrics that are known of a run that was interrupted.

    Args:
        results: `val/accuracy` and so on; splits without an accuracy are left out.
        fitted_on: split -> the splits on which the model of its row was trained or fitted.
        text: what was interrupted.
    """
    table = Table("split", "accuracy", "macro F1", "loss", "fitted on")
    known = [split for split in ("val", "test") if f"{split}/accuracy" in results]
    for split in known:
        table.add_row(split, *(f"{results[f'{split}/{metric}']:.4f}" for metric in ("accuracy", "f1", "loss")), fitted_on[split])
    if known:
        show(table)
    print_line(text)


def print_advice(measured: Measurements, advice: Advice, reason: str, costs: Mapping[str, float], command: Sequence[str]) -> None:
    """Print the measurements of each layer, the reason, the time of each scenario, and the command that follows the advice."""
    table = Table("layer", "held-out accuracy", "LogME")
    for depth in reversed(measured.depths):
        mark = " *" if depth.cut == advice.cut else ""
        table.add_row(depth.cut, f"{depth.accuracy:.4f}{mark}", f"{depth.logme:.3f}")
    show(table)
    print_line(f"* {reason}")
    times = ", ".join(f"{name} {duration_in_words(seconds)}" for name, seconds in costs.items())
    print_line(f"estimated time: {times}; less where features are stored already")
    print_line(shell_command([*typed_command(), *search_words(), *command]))
