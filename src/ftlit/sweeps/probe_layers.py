"""The layers of the probes of a sweep: a row for each job, and means and intervals over the jobs of a setting."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from ftlit.files import write_rows
from ftlit.formats import reading
from ftlit.formatting import harmless
from ftlit.run_folder import PROBE_LAYERS
from ftlit.sweeps.jobs import REMEDY, Job, varying
from ftlit.sweeps.seed_statistics import interval
from ftlit.sweeps.setting_jobs import settings_of

SETTINGS_LAYERS = "settings_layers.csv"
LAYER = ("cut", "kind", "pooling")
COLUMNS = ("draw", *LAYER, "l2", "accuracy", "loss", "test_accuracy", "test_low", "test_high")
STATISTICS = ("mean", "std", "low", "high")

ProbedLayer = Mapping[str, str]
JobLayers = list[tuple[Job, list[ProbedLayer]]]


def read_layers(jobs: Sequence[tuple[Path, Job]]) -> JobLayers:
    """The rows of `probe_layers.csv` of each job of `recipe=probe` that ended well. Raises `UserError` for a damaged file."""
    found: JobLayers = []
    for folder, job in jobs:
        path = folder / PROBE_LAYERS
        if job.status == 0 and path.is_file():
            with reading(path, REMEDY), path.open(newline="", encoding="utf-8") as file:
                found.append((job, [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file)]))
    return found


def write_layers(path: Path, layers: JobLayers) -> None:
    """Write the rows of all jobs: a row for each job, random sample, cut, kind and pooling."""
    rows: list[Sequence[object]] = [("job", "overrides", *COLUMNS)]
    for job, own in layers:
        rows += [(job.number, harmless(" ".join(job.overrides)), *row.values()) for row in own]
    write_rows(path, rows)


class SettingLayer(NamedTuple):
    """The probes of a setting at one cut, of one kind and pooling.

    Args:
        values: of the swept options.
        layer: cut, kind and pooling.
        samples: number of seeds times random samples.
        accuracy: on held-out images: mean, standard deviation and ends of the 95 % interval (Student's t), as far as they are known.
        test_accuracy: likewise.
    """

    values: Sequence[str]
    layer: tuple[str, ...]
    samples: int
    accuracy: tuple[float | None, ...]
    test_accuracy: tuple[float | None, ...]


def settings_layers(jobs: Sequence[Job], layers: JobLayers) -> list[SettingLayer]:
    """The layers of each setting, over seeds and random samples together; none where no job ran `recipe=probe`."""
    rows = {job.number: own for job, own in layers}
    found = list[SettingLayer]()
    for setting in settings_of(jobs):
        by_layer: dict[tuple[str, ...], list[ProbedLayer]] = {}
        for row in (row for job in setting.done for row in rows.get(job.number, [])):
            by_layer.setdefault(tuple(row[name] for name in LAYER), []).append(row)
        for layer, own in by_layer.items():
            numbers = [_statistics([float(row[name]) for row in own if row[name]]) for name in ("accuracy", "test_accuracy")]
            found.append(SettingLayer(setting.values, layer, len(own), *numbers))
    return found


def layers_table(jobs: Sequence[Job], layers: Sequence[SettingLayer]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a row for each of the `settings_layers`, the options that differ between the jobs first."""
    header = [*varying(jobs), *LAYER, "samples", "held-out accuracy", "95 % interval", "test accuracy", "95 % interval of test"]
    rows = [
        [*row.values, *row.layer, str(row.samples), *_mean_and_interval(row.accuracy), *_mean_and_interval(row.test_accuracy)]
        for row in layers
    ]
    return header, rows


def _mean_and_interval(statistics: tuple[float | None, ...]) -> tuple[str, str]:
    middle, _, low, high = statistics
    return "-" if middle is None else f"{middle:.4f}", "-" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def write_settings_layers(path: Path, jobs: Sequence[Job], layers: Sequence[SettingLayer]) -> None:
    """Write a row for each of the `settings_layers`."""
    names = [f"{name}_{statistic}" for name in ("accuracy", "test_accuracy") for statistic in STATISTICS]
    rows: list[Sequence[object]] = [(*varying(jobs), *LAYER, "samples", *names)]
    rows += [(*map(harmless, row.values), *row.layer, row.samples, *row.accuracy, *row.test_accuracy) for row in layers]
    write_rows(path, rows)


def _statistics(values: Sequence[float]) -> tuple[float | None, ...]:
    if not values:
        return (None,) * len(STATISTICS)
    return (mean(values), stdev(values) if len(values) > 1 else None, *(interval(values, share=True) or (None, None)))
