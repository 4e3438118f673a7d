"""Runs stored as they end, so that an interrupted benchmark can be continued, and summaries of them."""

import json
import statistics
from collections.abc import Sequence
from datetime import date
from math import sqrt
from pathlib import Path
from typing import Any

from scipy.stats import t


class Ledger:
    """A JSON-lines file with one run per line; the first line is the environment in which all of them were measured.

    Args:
        path: the file. A run in it that did not fail is not run again.
        names: names of the parts of a run's key, in order.
        stamp: the environment: versions, code, data.
    """

    def __init__(self, path: Path, names: Sequence[str], stamp: dict[str, Any]) -> None:
        self.path, self.names = path, tuple(names)
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(stamp) + "\n")
        elif (stored := json.loads(lines[0])) != stamp:
            changed = [name for name in {**stored, **stamp} if stored.get(name) != stamp.get(name)]
            raise SystemExit(f"{path} holds runs with another {', '.join(changed)}: give another --work folder")
        elif not lines[-1].endswith("}"):  # an incomplete line: the process was killed while writing
            path.write_text("".join(f"{line}\n" for line in lines[:-1]))
        runs = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        self.runs = {tuple(run[name] for name in names): run for run in runs}

    def is_missing(self, key: tuple[Any, ...]) -> bool:
        """Whether a run has not been done, or failed."""
        return "accuracy" not in self.runs.get(key, {})

    def add(self, key: tuple[Any, ...], result: dict[str, Any]) -> None:
        """Store the result of a run."""
        self.runs[key] = {**dict(zip(self.names, key, strict=True)), **result, "date": str(date.today())}
        with self.path.open("a") as file:
            file.write(json.dumps(self.runs[key]) + "\n")


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of the 95 % interval (Student's t); `None` for a single value."""
    if len(values) < 2:
        return values[0], None
    return statistics.mean(values), float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / sqrt(len(values))


def summary(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per combination of `names`, over the seeds: mean accuracy, half-width of its interval, median of the seconds, and the
    accuracy and seconds of each seed; if runs failed, their number and the first `error`.
    """
    rows = []
    for cell in dict.fromkeys(tuple(run[name] for name in names) for run in runs):
        own = [run for run in runs if tuple(run[name] for name in names) == cell]
        done, row = [run for run in own if "accuracy" in run], dict(zip(names, cell, strict=True))
        if done:
            mean, half = interval([run["accuracy"] for run in done])
            row |= {
                "accuracy": mean,
                "half": half,
                "seconds": statistics.median(run["seconds"] for run in done),
                "accuracies": {str(run["seed"]): run["accuracy"] for run in done},
                "times": {str(run["seed"]): run["seconds"] for run in done},
            }
        if failed := [run["error"] for run in own if "accuracy" not in run]:
            row |= {"failed": len(failed), "error": failed[0]}
        rows.append(row)
    return rows


def difference(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """Accuracy of one row minus that of another, seed by seed: the mean difference and its interval."""
    mean, half = interval([ours["accuracies"][seed] - other["accuracies"][seed] for seed in ours["accuracies"]])
    return f"{mean:+z.3f}" + ("" if half is None else f" ± {half:.3f}")  # z: not -0.000


def days(runs: Sequence[dict[str, Any]]) -> str:
    """First and last date of the runs."""
    known = sorted({run["date"] for run in runs})
    return " to ".join(dict.fromkeys((known[0], known[-1])))


def cell(row: dict[str, Any] | None, best: float | None) -> str:
    """The accuracy of a row with its interval, in bold if it is the `best`, and the number of failed runs; empty without a row."""
    if row is None:
        return ""
    if "accuracy" not in row:
        return "fails"
    accuracy = f"{row['accuracy']:.3f}"
    half = "" if row["half"] is None else f" ± {row['half']:.3f}"
    return f"{f'**{accuracy}**' if best == float(accuracy) else accuracy}{half}" + (f" ({row['failed']} failed)" if "failed" in row else "")


def best_of(rows: Sequence[dict[str, Any]]) -> float | None:
    """The best accuracy, rounded as in a table; `None` if there are fewer than two to compare."""
    shown = [round(row["accuracy"], 3) for row in rows if "accuracy" in row]
    return max(shown) if len(shown) > 1 else None
