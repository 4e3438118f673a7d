"""Print the results of a run, and the advice on a scenario."""

import shlex
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from rich.table import Table

from ftlit.probes.advice import Advice, Measurements
from ftlit.recipes.config.overrides import typed_command
from ftlit.recipes.console.printing import print_line, show


def print_results(cfg: DictConfig, results: Mapping[str, float], notes: Sequence[str]) -> None:
    """Print the metrics of the best checkpoint on val and test, notes on the run, and its folder."""
    table = Table("split", "accuracy", "macro F1", "loss")
    for split in ("val", "test"):
        table.add_row(split, *(f"{results[f'{split}/{metric}']:.4f}" for metric in ("accuracy", "f1", "loss")))
    show(table)
    print_line(f"{'; '.join(notes)}; best and last checkpoint, metrics.csv, config.yaml: {cfg.paths.run}")


def print_advice(measured: Measurements, advice: Advice, reason: str, costs: Mapping[str, float], command: Sequence[str]) -> None:
    """Print the measurements of each layer, the reason, the time of each scenario, and the command that follows the advice."""
    table = Table("layer", "held-out accuracy", "LogME")
    for depth in reversed(measured.depths):
        mark = " *" if depth.cut == advice.cut else ""
        table.add_row(depth.cut, f"{depth.accuracy:.4f}{mark}", f"{depth.logme:.3f}")
    show(table)
    print_line(f"* {reason}")
    print_line("estimated time: " + ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in costs.items()))
    print_line(shlex.join([*typed_command(), *command]))
