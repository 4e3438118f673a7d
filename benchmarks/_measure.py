"""Alternating measurements of several sides in one process, a description of the machine, and the table of results."""

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from typing import Any

import torch

import ftlit.conf

PACKAGES = ("ftlit", "torch", "torchvision", "lightning", "numpy", "safetensors")


@dataclass(frozen=True)
class Row:
    """A row of the table. `ours` and `other` are medians and `ratio` is their ratio; `ratios` are the smallest and largest ratio of a
    round, and `samples` holds every measurement.
    """

    measure: str
    ours: float
    other: float | None
    ratio: float | None
    target: str
    unit: str = "s"
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    ratios: Sequence[float] = ()


def median(values: Sequence[float]) -> float:
    """The median; nan if a value is nan, that is, if a side failed in a round."""
    return nan if any(value != value for value in values) else statistics.median(values)


def timed(work: Callable[[], Any]) -> float:
    """Duration of `work` in seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measurements of each side in each round. All sides run in every round, in reverse order every second time, so that slow phases of the
    machine affect all of them.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            samples[name].append(sides[name]())
        print(
            f"round {number + 1}:", ", ".join(f"{name} {values[-1]:.4g}" for name, values in samples.items()), file=sys.stderr, flush=True
        )
    return samples


def compared(
    measure: str,
    samples: dict[str, list[float]],
    ours: str,
    other: str,
    target: str,
    *,
    inverse: bool = False,
    unit: str = "s",
    note: str = "",
) -> Row:
    """A row with the ratio ours / other, or other / ours if `inverse`."""
    a, b = (median(samples[name]) for name in (ours, other))
    each = [y / x if inverse else x / y for x, y in zip(samples[ours], samples[other], strict=True)]
    kept = {name: samples[name] for name in (ours, other)}
    return Row(measure, a, b, b / a if inverse else a / b, target, unit, note, kept, (min(each), max(each)))


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and the versions of the measurement; `packages` are further packages whose versions are included."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0)
    return {
        "date": str(date.today()),
        "cpu": cpus[0] if cpus else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": f"{memory:.0f} GiB",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **(
            {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
            if torch.cuda.is_available()
            else {}
        ),
        **{package: _version(package) for package in (*PACKAGES, *packages)},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        sys.exit(f"{package} is not installed, and this benchmark compares with it: pip install -e '.[bench]'")


def stamp(script: Path, packages: Sequence[str] = (), **others: object) -> dict[str, str]:
    """The environment of stored runs: machine, versions, `others`, and a hash of the code, configs and weights of ftlit, of the systems, of
    the code that splits images, and of the script.
    """
    found, here = machine(packages), Path(__file__).parent
    folders = (Path(ftlit.__file__).parent, Path(ftlit.conf.__file__).parent, here / "systems")
    files = [path for folder in folders for end in ("*.py", "*.yaml", "*.safetensors") for path in sorted(folder.rglob(end))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in [*files, here / "quality.py", script])).hexdigest()[:12]
    kept = ("cpu", "cores", "python", *PACKAGES, *packages)
    return {**{name: str(found[name]) for name in kept}, "code": code, **{name: str(value) for name, value in others.items()}}


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table, and their notes."""
    lines = ["| measure | ftlit | compared with | ratio (min to max of a round) | target |", "|---|---|---|---|---|"]
    for row in rows:
        ours, other = (f"{value:.4g} {row.unit}" if value is not None else "" for value in (row.ours, row.other))
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        spread = f" ({' to '.join(f'{value:.3g}' for value in row.ratios)})" if row.ratios else ""
        lines.append(f"| {row.measure} | {ours} | {other} | {ratio}{spread} | {row.target} |")
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def written(path: Path, found: dict[str, Any], options: dict[str, Any], rows: Sequence[Any]) -> None:
    """Write rows (dicts or dataclasses) with machine and options as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": found, "options": options, "rows": rows}, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
