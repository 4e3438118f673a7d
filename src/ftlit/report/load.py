"""A run's folder -> its evidence."""

import csv
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from ftlit.errors import UserError, one_line
from ftlit.report import run_files as files
from ftlit.report.contents import RunData
from ftlit.report.run_files import FOLDER, RUN


def read(folder: str | Path) -> RunData:
    """The evidence in a run's folder. Nothing in it is executed.

    Raises:
        UserError: no folder of a run, or a damaged one.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if not (folder / FOLDER / RUN).is_file():
        raise UserError(f"{folder} is no folder of a run that left a report ({FOLDER}/{RUN}): give one, or run with report=true")
    try:
        run = files.read_json(folder / FOLDER / RUN)
        return RunData(
            folder,
            run,
            run["class_names"],
            _metrics(folder / "metrics.csv"),
            files.read_stages(folder),
            files.read_tested(folder),
            files.read_features(folder),
            files.read_pictures(folder, "samples"),
            files.read_pictures(folder, "mistakes"),
            _depths(folder),
            _result(folder / "result.json"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error, SafetensorError) as error:
        raise UserError(f"the report of {folder} cannot be read: {one_line(error)}") from error


def _metrics(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _depths(folder: Path) -> dict[str, dict[str, float]]:
    """From `probe.csv`, at the L2 penalty of the least loss; else from what `scenario=auto` measured."""
    if (table := folder / "probe.csv").is_file():
        return _of_probes(table)
    if (advice := folder / "advice.json").is_file() and (measured := json.loads(advice.read_text()).get("measured")):
        return {"ridge": {depth["cut"]: depth["accuracy"] for depth in measured["depths"]}}
    return {}


def _of_probes(table: Path) -> dict[str, dict[str, float]]:
    best: dict[tuple[str, ...], tuple[float, float]] = {}  # by kind, pooling, cut and draw: loss and accuracy
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["kind"], row["pooling"], row["cut"], row["draw"]
            best[key] = min(best.get(key, (float("inf"), 0.0)), (float(row["loss"] or "inf"), float(row["accuracy"] or "nan")))
    found: dict[str, dict[str, list[float]]] = {}
    for (kind, pooling, cut, _), (_, accuracy) in reversed(best.items()):  # the file begins with the highest cut
        found.setdefault(f"{kind}, {pooling}", {}).setdefault(cut, []).append(accuracy)
    return {name: {cut: float(np.mean(values)) for cut, values in cuts.items()} for name, cuts in found.items()}


def _result(path: Path) -> dict[str, float]:
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}
