"""Two sides measured in turn, in one process; what the machine is; one table."""

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import ftlit

PACKAGES = ("ftlit", "torch", "torchvision", "lightning", "numpy", "safetensors")


@dataclass(frozen=True)
class Row:
    """A line of the table. `ours` and `other` are medians, and `ratio` is theirs; `ratios` are the least and the largest of a round, and
    `samples` holds every single one.
    """

    measure: str
    ours: float
    other: float | None
    ratio: float | None
    aim: str
    unit: str = "s"
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    ratios: Sequence[float] = ()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side gives in each round: all sides in each, backwards every second time: a slow minute meets all of them."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            samples[name].append(sides[name]())
        print(f"round {turn + 1}:", ", ".join(f"{name} {values[-1]:.4g}" for name, values in samples.items()), file=sys.stderr, flush=True)
    return samples


def compared(
    measure: str, samples: dict[str, list[float]], ours: str, other: str, aim: str, *, turned: bool = False, unit: str = "s", note: str = ""
) -> Row:
    """Ours over the other side, or the other over ours where `turned`."""
    a, b = (statistics.median(samples[name]) for name in (ours, other))
    each = [y / x if turned else x / y for x, y in zip(samples[ours], samples[other], strict=True)]
    kept = {name: samples[name] for name in (ours, other)}
    return Row(measure, a, b, b / a if turned else a / b, aim, unit, note, kept, (min(each), max(each)))


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What the numbers hold for; `packages` are named besides ours."""
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
        **{package: version(package) for package in (*PACKAGES, *packages)},
    }


def stamp(packages: Sequence[str] = (), **others: object) -> dict[str, str]:
    """What runs that are kept hold for: machine, versions, code of ours and of the systems, and `others`."""
    found = machine(packages)
    files = [path for folder in (Path(ftlit.__file__).parent, Path(__file__).parent / "systems") for path in sorted(folder.rglob("*.py"))]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    kept = ("cpu", "cores", "python", *PACKAGES, *packages)
    return {**{name: str(found[name]) for name in kept}, "code": code, **{name: str(value) for name, value in others.items()}}


def table(rows: Sequence[Row]) -> str:
    """The rows in markdown, and their notes."""
    lines = ["| measure | ours | other side | ratio (least and largest of a round) | aim |", "|---|---|---|---|---|"]
    for row in rows:
        ours, other = (f"{value:.4g} {row.unit}" if value is not None else "" for value in (row.ours, row.other))
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        spread = f" ({' to '.join(f'{value:.3g}' for value in row.ratios)})" if row.ratios else ""
        lines.append(f"| {row.measure} | {ours} | {other} | {ratio}{spread} | {row.aim} |")
    notes = dict.fromkeys(row.note for row in rows if row.note)
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def stored(path: Path, found: dict[str, Any], options: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Rows over seeds, as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": found, "options": options, "rows": rows}, indent=1))


def written(path: Path, found: dict[str, Any], options: dict[str, Any], rows: Sequence[Row]) -> None:
    """All of it as JSON."""
    path.write_text(json.dumps({"machine": found, "options": options, "rows": [asdict(row) for row in rows]}, indent=1, default=str))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
