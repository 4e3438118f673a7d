"""What a run leaves for its report, in plain files of its folder `report/`, and how they are written and read.

run.json        plan, layers, counts of the data, command, versions
stages.json     when each stage began, how long it took, how much memory
test.csv        a row for each test image: label, what it was taken for, how sure
codes.safetensors, samples.safetensors, mistakes.safetensors
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ftlit.errors import UserError, one_line

FOLDER, RUN, STAGES, TEST = "report", "run.json", "stages.json", "test.csv"
BETWEEN = "|"  # several labels of one image
Array = np.ndarray[Any, Any]


@dataclass
class StageRecord:
    """What became of a stage.

    Args:
        name: of it.
        epoch: the first.
        step: the first optimizer step.
        seconds: that it took, validation and all.
        bytes: the most memory that was in use at the end of an epoch: of the GPU, else of the process.
    """

    name: str
    epoch: int
    step: int
    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Answers:
    """What the network says of the test images.

    Args:
        items: path, number or text of each.
        labels: class numbers of each: one, or any number where there are several labels.
        predicted: the same of what it says.
        probability: of the likeliest class, or of the surest label.
    """

    items: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    predicted: Sequence[tuple[int, ...]]
    probability: Array


@dataclass(frozen=True)
class Pictures:
    """Images as the network sees them, and what to write beneath.

    Args:
        images: uint8 (n, S, S, 3).
        captions: a text each.
    """

    images: Array
    captions: Sequence[str]


@dataclass(frozen=True)
class Evidence:
    """All that the report of a run shows; what the run did not leave is empty, or `None`.

    Args:
        folder: of the run.
        run: `run.json`.
        class_names: class number -> name.
        metrics: rows of metrics.csv, numbers only.
        stages: in order.
        tested: what it says of test images.
        codes: (n, C) float32 of some test images, and their labels (n,).
        samples: training images.
        mistakes: test images that it is most sure of, wrongly.
        depths: cut -> accuracy on held-out images, the lowest first, by kind of probe.
        result: accuracy and so on, by split.
    """

    folder: Path
    run: Mapping[str, Any]
    class_names: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    stages: Sequence[StageRecord]
    tested: Answers | None
    codes: tuple[Array, Array] | None
    samples: Pictures | None
    mistakes: Pictures | None
    depths: Mapping[str, Mapping[str, float]]
    result: Mapping[str, float]


def write_json(folder: Path, name: str, what: Any) -> None:
    """A file in the report's folder, which is made where it is not there."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / FOLDER / name).write_text(json.dumps(what, ensure_ascii=False, indent=1))


def write_stages(folder: Path, stages: Sequence[StageRecord]) -> None:
    """`stages.json`."""
    write_json(folder, STAGES, [asdict(stage) for stage in stages])


def read_stages(folder: Path) -> list[StageRecord]:
    """`stages.json`, if it is there."""
    path = folder / FOLDER / STAGES
    return [StageRecord(**stage) for stage in json.loads(path.read_text())] if path.is_file() else []


def write_tested(folder: Path, tested: Answers, class_names: Sequence[str]) -> None:
    """`test.csv`."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    names = [list(map(_joined(class_names), labels)) for labels in (tested.labels, tested.predicted)]
    with (folder / FOLDER / TEST).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "label", "predicted", "probability"])
        writer.writerows(zip(tested.items, *names, (f"{value:.4f}" for value in tested.probability), strict=True))


def _joined(class_names: Sequence[str]) -> Any:
    return lambda numbers: BETWEEN.join(class_names[number].replace(BETWEEN, "/") for number in numbers)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], captions: Sequence[str] = ()) -> None:
    """`name.safetensors`, with captions inside."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / FOLDER / f"{name}.safetensors", {"captions": json.dumps(list(captions))})


def read(folder: str | Path) -> Evidence:
    """The evidence in a run's folder. Nothing in it is executed.

    Raises:
        UserError: no folder of a run, or a damaged one.
    """
    folder = Path(folder).expanduser()
    if not (folder / FOLDER / RUN).is_file():
        raise UserError(f"{folder} is no folder of a run that left a report ({FOLDER}/{RUN}): give one, or run with report=true")
    try:
        run = json.loads((folder / FOLDER / RUN).read_text())
        names = run["class_names"]
        return Evidence(
            folder,
            run,
            names,
            _metrics(folder / "metrics.csv"),
            read_stages(folder),
            _tested(folder / FOLDER / TEST, names),
            _codes(folder),
            _pictures(folder, "samples"),
            _pictures(folder, "mistakes"),
            _depths(folder),
            _result(folder / "result.json"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the report of {folder} cannot be read: {one_line(error)}") from error


def _metrics(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _tested(path: Path, class_names: Sequence[str]) -> Answers | None:
    if not path.is_file():
        return None
    numbers = {_joined(class_names)([number]): number for number in range(len(class_names))}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels, predicted = (
        [tuple(numbers[name] for name in row[column].split(BETWEEN) if name) for row in rows] for column in ("label", "predicted")
    )
    return Answers([row["item"] for row in rows], labels, predicted, np.array([float(row["probability"]) for row in rows]))


def _codes(folder: Path) -> tuple[Array, Array] | None:
    path = folder / FOLDER / "codes.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return file.get_tensor("codes").to(torch.float32).numpy(), file.get_tensor("labels").numpy()


def _pictures(folder: Path, name: str) -> Pictures | None:
    path = folder / FOLDER / f"{name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return Pictures(file.get_tensor("images").permute(0, 2, 3, 1).numpy(), json.loads(file.metadata()["captions"]))


def _depths(folder: Path) -> dict[str, dict[str, float]]:
    """From `probe.csv`, at the strength of the least loss; else from what `scenario=auto` measured."""
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
