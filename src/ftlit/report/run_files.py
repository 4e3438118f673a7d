"""The files of a run's folder `report/`, written atomically, and their readers.

run.json             plan, layers, counts of the data, command, versions
stages.json          begin, duration and memory of each stage
test.csv             one row per test image: true and predicted class, probability; by names, and by class numbers, which are read again
features.safetensors features of some test images, and their labels
samples.safetensors  training images; mistakes.safetensors: test images with the most confident errors

All but the table carry the format number. A reader takes format 0 too: `stages.json` is a list there, and features are called codes.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ftlit.files import write_atomically
from ftlit.formats import FORMAT, KEY, JsonObject, upgraded, with_format
from ftlit.report.contents import Array, Pictures, Predictions, StageRecord

FOLDER, RUN, STAGES, TEST = "report", "run.json", "stages.json", "test.csv"
SEPARATOR = " | "  # between several labels of one image
MAX_ITEM_LENGTH = 500  # characters of a text that are kept
ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names may be any bytes


def clear(folder: Path) -> None:
    """Remove the predictions and pictures of an earlier run."""
    for pattern in ("*.png", "*.safetensors", TEST):
        for path in (folder / FOLDER).glob(pattern):
            path.unlink()


def write_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a file of the folder `report/`, with the format number in front."""
    write_atomically(folder / FOLDER / name, json.dumps(with_format(content), ensure_ascii=False, indent=1).encode(**ENCODING))


def read_run(folder: Path) -> JsonObject:
    """`run.json`."""
    return _read_json(folder / FOLDER / RUN)


def write_stages(folder: Path, stages: Sequence[StageRecord]) -> None:
    """Write `stages.json`."""
    write_json(folder, STAGES, {"stages": [asdict(stage) for stage in stages]})


def read_stages(folder: Path) -> list[StageRecord]:
    """`stages.json`; empty where there is none."""
    path = folder / FOLDER / STAGES
    return [StageRecord(**stage) for stage in _read_json(path, _stages_from_0)["stages"]] if path.is_file() else []


def _stages_from_0(content: JsonObject) -> JsonObject:
    """In format 0 the file is a list, which `_read_json` puts under the name `list`."""
    return {"stages": content["list"]}


def write_predictions(folder: Path, predictions: Predictions, class_names: Sequence[str]) -> None:
    """Write `test.csv`."""
    writer = csv.writer(stream := io.StringIO(newline=""))
    writer.writerow(["item", "label", "predicted", "probability", "label_number", "predicted_number"])
    columns = predictions.items, predictions.labels, predictions.predicted, predictions.probability
    for item, label, predicted, probability in zip(*columns, strict=True):
        names = [SEPARATOR.join(class_names[number] for number in numbers) for numbers in (label, predicted)]
        numbers = [" ".join(map(str, numbers)) for numbers in (label, predicted)]
        writer.writerow([item[:MAX_ITEM_LENGTH], *names, f"{probability:.4f}", *numbers])
    write_atomically(folder / FOLDER / TEST, stream.getvalue().encode(**ENCODING))


def read_predictions(folder: Path) -> Predictions | None:
    """`test.csv`; `None` where there is none."""
    path = folder / FOLDER / TEST
    if not path.is_file():
        return None
    with path.open(newline="", **ENCODING) as file:  # type: ignore[call-overload]
        rows = list(csv.DictReader(file))
    labels, predicted = ([tuple(map(int, row[name].split())) for row in rows] for name in ("label_number", "predicted_number"))
    return Predictions([row["item"] for row in rows], labels, predicted, np.array([float(row["probability"]) for row in rows]))


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], captions: Sequence[str] = ()) -> None:
    """Write `name.safetensors`, with the captions in its metadata."""
    text = json.dumps([caption.encode(**ENCODING).decode("utf-8", "replace") for caption in captions])
    write_atomically(folder / FOLDER / f"{name}.safetensors", save(dict(tensors), {KEY: str(FORMAT), "captions": text}))


def read_features(folder: Path) -> tuple[Array, Array] | None:
    """Features (n, C) float32 and labels (n,); `None` where there are none."""
    for name in ("features", "codes"):  # codes: format 0
        if found := _read_tensors(folder, name):
            tensors, _ = found
            return tensors[name].to(torch.float32).numpy(), tensors["labels"].numpy()
    return None


def read_pictures(folder: Path, name: str) -> Pictures | None:
    """Images and captions of `name.safetensors`; `None` where there are none."""
    found = _read_tensors(folder, name)
    return found and Pictures(found[0]["images"].permute(0, 2, 3, 1).numpy(), json.loads(found[1]["captions"]))


def _read_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], JsonObject] | None:
    path = folder / FOLDER / f"{name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        return {key: file.get_tensor(key) for key in file.keys()}, upgraded({**metadata, KEY: int(metadata.get(KEY, 0))}, path)


def _read_json(path: Path, from_0: Callable[[JsonObject], JsonObject] = dict) -> JsonObject:
    content = json.loads(path.read_bytes().decode(**ENCODING))
    return upgraded({"list": content} if isinstance(content, list) else content, path, from_0)
