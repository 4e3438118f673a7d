"""Runs that are kept as they end, so that a command that was stopped goes on where it stood; and what they say together."""

import json
import statistics
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from scipy.stats import t


class Ledger:
    """A line of JSON a run.

    Args:
        path: the file; what it holds already is done.
        names: of what makes a run's key, in the order of the keys.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, tuple(names)
        lines = path.read_text().splitlines() if path.exists() else []
        self.runs = {tuple(run[name] for name in names): run for run in map(json.loads, lines)}

    def add(self, key: tuple[Any, ...], said: dict[str, Any]) -> None:
        """What came of a run."""
        self.runs[key] = {**dict(zip(self.names, key, strict=True)), **said}
        with self.path.open("a") as file:
            file.write(json.dumps(self.runs[key]) + "\n")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t); 0 for one value."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), float(half)


def summary(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each combination of `names`, over the seeds: accuracy, half its interval, median of the seconds; `error` if one failed."""
    rows = []
    for cell in dict.fromkeys(tuple(run[name] for name in names) for run in runs):
        own = [run for run in runs if tuple(run[name] for name in names) == cell]
        done, row = [run for run in own if "accuracy" in run], dict(zip(names, cell, strict=True))
        if done:
            mean, half = interval([run["accuracy"] for run in done])
            row |= {"accuracy": mean, "half": half, "seconds": statistics.median(run["seconds"] for run in done), "seeds": len(done)}
        rows.append(row | ({"error": next(run["error"] for run in own if "error" in run)} if len(done) < len(own) else {}))
    return rows
