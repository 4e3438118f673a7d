"""Read the files of a run's folder that its report shows."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ftlit.errors import UserError, one_line
from ftlit.formats import reading
from ftlit.formatting import shown
from ftlit.report import run_files as files
from ftlit.report.contents import RunData
from ftlit.report.run_files import FOLDER, RUN
from ftlit.run_folder import is_run_folder, meant_run, no_run, read_advice, read_result


def read(folder: str | Path) -> RunData:
    """The data of a run's report. Nothing in the folder is executed.

    Raises:
        UserError: not the folder of a run with report files, or damaged ones.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {shown(folder)}{meant_run(folder)}")
    if not (folder / FOLDER / RUN).is_file():
        if not is_run_folder(folder):
            raise no_run(folder, "a run or of a sweep")
        raise UserError(f"{folder} has no {FOLDER}/{RUN}: give the folder of a run that had report=true")
    try:
        about, suspects = files.read_run(folder), files.suspects_or_note(folder)
        return RunData(
            folder,
            about,
            about["class_names"],
            files.read_metrics(folder),
            files.read_stages(folder),
            files.read_predictions(folder),
            files.read_features(folder),
            files.read_pictures(folder, "samples"),
            files.read_pictures(folder, "mistakes"),
            _depths(folder),
            _result(folder),
            suspects,
            None if suspects is None else files.read_pictures(folder, "suspected"),
            files.read_pictures(folder, "nearest"),
            files.read_pictures(folder, "maps"),
        )
    except UserError:  # a damaged file, or a newer format
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the report of {folder} cannot be read: {one_line(error)}") from error


def _depths(folder: Path) -> dict[str, dict[str, float]]:
    """From `probe.csv`, at the L2 penalty with the lowest loss; else from the measurements of `scenario=auto`."""
    if (table := folder / "probe.csv").is_file():
        with reading(table, "restore it, or train again"):
            return _of_probes(table)
    measurements = (read_advice(folder) or {}).get("measurements")
    if measurements:
        return {"ridge": {depth["cut"]: depth["accuracy"] for depth in measurements["depths"]}}
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


def _result(folder: Path) -> dict[str, Any]:
    """Metrics of a run; those of a probe, a list, are in its plan."""
    result = read_result(folder)
    return result if isinstance(result, dict) else {}
