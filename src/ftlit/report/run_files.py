"""The files of a run's folder `report/`, plain and each whole at any moment.

run.json        plan, layers, counts of the data, command, versions
stages.json     when each stage began, how long it took, how much memory
test.csv        a row for each test image: label, what it was taken for, how sure; by names, and by class numbers, which are read again
features.safetensors, samples.safetensors, mistakes.safetensors
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ftlit.files import write_atomically
from ftlit.report.contents import Array, Pictures, Predictions, StageRecord

FOLDER, RUN, STAGES, TEST = "report", "run.json", "stages.json", "test.csv"
BETWEEN = " | "  # several labels of one image, for a reader
LONGEST = 500  # letters of a text that are kept
BYTES = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be any bytes


def clear(folder: Path) -> None:
    """Remove what an earlier run left of its answers and pictures."""
    for pattern in ("*.png", "*.safetensors", TEST):
        for path in (folder / FOLDER).glob(pattern):
            path.unlink()


def write_json(folder: Path, name: str, what: Any) -> None:
    """A file in the report's folder."""
    write_atomically(folder / FOLDER / name, json.dumps(what, ensure_ascii=False, indent=1).encode(**BYTES))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_bytes().decode(**BYTES))


def write_stages(folder: Path, stages: Sequence[StageRecord]) -> None:
    """`stages.json`."""
    write_json(folder, STAGES, [asdict(stage) for stage in stages])


def read_stages(folder: Path) -> list[StageRecord]:
    """`stages.json`, if it is there."""
    path = folder / FOLDER / STAGES
    return [StageRecord(**stage) for stage in read_json(path)] if path.is_file() else []


def write_tested(folder: Path, tested: Predictions, class_names: Sequence[str]) -> None:
    """`test.csv`."""
    writer = csv.writer(stream := io.StringIO(newline=""))
    writer.writerow(["item", "label", "predicted", "probability", "label_number", "predicted_number"])
    for item, label, said, probability in zip(tested.items, tested.labels, tested.predicted, tested.probability, strict=True):
        names = [BETWEEN.join(class_names[number] for number in numbers) for numbers in (label, said)]
        numbers = [" ".join(map(str, numbers)) for numbers in (label, said)]
        writer.writerow([item[:LONGEST], *names, f"{probability:.4f}", *numbers])
    write_atomically(folder / FOLDER / TEST, stream.getvalue().encode(**BYTES))


def read_tested(folder: Path) -> Predictions | None:
    """`test.csv`, if it is there."""
    path = folder / FOLDER / TEST
    if not path.is_file():
        return None
    with path.open(newline="", **BYTES) as file:  # type: ignore[call-overload]
        rows = list(csv.DictReader(file))
    labels, said = ([tuple(map(int, row[name].split())) for row in rows] for name in ("label_number", "predicted_number"))
    return Predictions([row["item"] for row in rows], labels, said, np.array([float(row["probability"]) for row in rows]))


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], captions: Sequence[str] = ()) -> None:
    """`name.safetensors`, with captions inside."""
    told = json.dumps([caption.encode(**BYTES).decode("utf-8", "replace") for caption in captions])
    write_atomically(folder / FOLDER / f"{name}.safetensors", save(dict(tensors), {"captions": told}))


def read_features(folder: Path) -> tuple[Array, Array] | None:
    """Features (n, C) float32 and labels (n,), if they are there."""
    path = folder / FOLDER / "features.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return file.get_tensor("features").to(torch.float32).numpy(), file.get_tensor("labels").numpy()


def read_pictures(folder: Path, name: str) -> Pictures | None:
    """Images of `name.safetensors`, if they are there."""
    path = folder / FOLDER / f"{name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        return Pictures(file.get_tensor("images").permute(0, 2, 3, 1).numpy(), json.loads(file.metadata()["captions"]))
