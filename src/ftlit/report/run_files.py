"""The files of a run's folder `report/`, written atomically, and their readers.

run.json             plan, layers, counts of the data, command, versions
stages.json          begin, duration and memory of each stage
test.csv             one row per test image: true and predicted class, probability; by names, and by class numbers, which are read again
test.json            digest of test.csv, which may be removed if the table is edited
metrics.json         the same for ../metrics.csv, once the run has ended; suspects.json: for ../suspects.csv
features.safetensors features of some test images, their labels, and whether they were classified wrongly
samples.safetensors  training images; mistakes.safetensors: test images with the most confident errors; nearest.safetensors: the training
                     images nearest to these; maps.safetensors: class activation maps over them; suspected.safetensors: training images
                     that are possibly mislabelled

All but the table carry the format number. A reader takes format 0 too: `stages.json` is a list there, and features are called codes.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftlit.files import write_atomically
from ftlit.formats import ENCODING, FORMAT, KEY, DamagedFile, JsonObject, read_json, reading, upgraded, write_json
from ftlit.formatting import harmless
from ftlit.identity.fingerprint import of_bytes
from ftlit.printing import print_line
from ftlit.report.contents import Array, Pictures, Predictions, StageRecord, SuspectRow
from ftlit.run_folder import REPORT
from ftlit.tensor_files import read_tensors, write_tensors

FOLDER, RUN, STAGES, TEST, TEST_DIGEST = "report", REPORT, "stages.json", "test.csv", "test.json"
METRICS, METRICS_DIGEST = "metrics.csv", "metrics.json"
SUSPECTS, SUSPECTS_DIGEST = "suspects.csv", "suspects.json"
TEST_COLUMNS = ("item", "label", "predicted", "probability", "label_number", "predicted_number")
OPTIONAL_COLUMNS = {  # of `Predictions` -> in test.csv
    "uncalibrated": "uncalibrated",
    "of_label": "label_probability",
    "second": "second_number",
    "of_second": "second_probability",
}
SEPARATOR = " | "  # between several labels of one image
MAX_ITEM_LENGTH = 500  # characters of a text that are kept
REMEDY = "restore it, or train again"


def clear(folder: Path) -> None:
    """Remove the predictions and images of an earlier run. The report replaces its figures by name: other images may be the user's."""
    for pattern in ("*.safetensors", TEST, TEST_DIGEST, METRICS_DIGEST):
        for path in (folder / FOLDER).glob(pattern):
            path.unlink()


def write_run(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `run.json`."""
    write_json(folder / FOLDER / RUN, content)


def read_run(folder: Path) -> JsonObject:
    """`run.json`."""
    return read_json(folder / FOLDER / RUN, remedy=REMEDY)  # type: ignore[no-any-return]


def write_stages(folder: Path, stages: Sequence[StageRecord]) -> None:
    """Write `stages.json`."""
    write_json(folder / FOLDER / STAGES, {"stages": [asdict(stage) for stage in stages]})


def read_stages(folder: Path) -> list[StageRecord]:
    """`stages.json`; empty where there is none."""
    path = folder / FOLDER / STAGES
    content = read_json(path, remedy=REMEDY) if path.is_file() else []
    with reading(path, REMEDY):
        return [StageRecord(**stage) for stage in (content if isinstance(content, list) else content["stages"])]  # a list: format 0


def write_predictions(folder: Path, predictions: Predictions, class_names: Sequence[str]) -> None:
    """Write `test.csv`, and its digest beside it."""
    rows = [_test_row(predictions, place, class_names) for place in range(len(predictions.items))]
    writer = csv.DictWriter(stream := io.StringIO(newline=""), rows[0] if rows else TEST_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    content = stream.getvalue().encode(**ENCODING)
    (folder / FOLDER / TEST_DIGEST).unlink(missing_ok=True)  # of an earlier file
    write_atomically(folder / FOLDER / TEST, content)
    write_json(folder / FOLDER / TEST_DIGEST, {"digest": of_bytes(content)})


def _test_row(predictions: Predictions, place: int, class_names: Sequence[str]) -> dict[str, str]:
    labels = [predictions.labels[place], predictions.predicted[place]]
    names = [SEPARATOR.join(class_names[number] for number in numbers) for numbers in labels]
    texts = map(harmless, (predictions.items[place][:MAX_ITEM_LENGTH], *names))
    numbers = [" ".join(map(str, own)) for own in labels]
    row = dict(zip(TEST_COLUMNS, (*texts, f"{predictions.probability[place]:.4f}", *numbers), strict=True))
    for name, values in predictions.optional.items():
        if name == "second":
            row |= {"second": harmless(class_names[values[place]]), OPTIONAL_COLUMNS[name]: str(values[place])}
        else:
            row[OPTIONAL_COLUMNS[name]] = f"{values[place]:.4f}"
    return row


def read_predictions(folder: Path) -> Predictions | None:
    """`test.csv`; `None` where there is none."""
    path = folder / FOLDER / TEST
    if not path.is_file():
        return None
    with reading(path, REMEDY):
        content = _checked(path, folder / FOLDER / TEST_DIGEST)
        rows = list(csv.DictReader(io.StringIO(content.decode(**ENCODING), newline="")))
        labels, predicted = ([tuple(map(int, row[name].split())) for row in rows] for name in ("label_number", "predicted_number"))
        probability = np.array([float(row["probability"]) for row in rows])
        there = {own: name for own, name in OPTIONAL_COLUMNS.items() if rows and name in rows[0]}  # not in runs of earlier releases
        optional = {own: np.array([(int if own == "second" else float)(row[name]) for row in rows]) for own, name in there.items()}
        return Predictions([row["item"] for row in rows], labels, predicted, probability, **optional)


def _checked(path: Path, digest: Path) -> bytes:
    """The bytes of a file. Raises `DamagedFile` where its digest, if there is one, is of other bytes."""
    content = path.read_bytes()
    if digest.is_file() and read_json(digest, remedy=REMEDY)["digest"] != of_bytes(content):
        raise DamagedFile(path, f"its content does not match the digest in {FOLDER}/{digest.name}")
    return content


def write_digests(folder: Path) -> None:
    """Write the digests of the `metrics.csv` and `suspects.csv` of a run that has ended, of those that there are."""
    for name, digest in ((METRICS, METRICS_DIGEST), (SUSPECTS, SUSPECTS_DIGEST)):
        if (path := folder / name).is_file():
            write_json(folder / FOLDER / digest, {"digest": of_bytes(path.read_bytes())})


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`; empty where there is none."""
    path = folder / METRICS
    if not path.is_file():
        return []
    with reading(path, REMEDY):
        text = _checked(path, folder / FOLDER / METRICS_DIGEST).decode()
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text, newline=""))]


def remove_suspects(folder: Path) -> None:
    """Remove the `suspects.csv` of an earlier run."""
    for path in (folder / SUSPECTS, folder / FOLDER / SUSPECTS_DIGEST):
        path.unlink(missing_ok=True)


def write_suspects(folder: Path, rows: Sequence[SuspectRow]) -> None:
    """Write `suspects.csv`."""
    writer = csv.writer(stream := io.StringIO(newline=""))
    writer.writerow([field.name for field in fields(SuspectRow)])
    for row in rows:
        names = map(harmless, (row.item[:MAX_ITEM_LENGTH], row.label, row.suggested))
        writer.writerow([*names, f"{row.probability:.4f}", f"{row.suggested_probability:.4f}", row.place])
    content = stream.getvalue().encode(**ENCODING)
    remove_suspects(folder)
    write_atomically(folder / SUSPECTS, content)


def read_suspects(folder: Path) -> list[SuspectRow] | None:
    """The rows of `suspects.csv`; `None` where there is none. Raises `DamagedFile`, also for a file that the user has edited."""
    path = folder / SUSPECTS
    if not path.is_file():
        return None
    with reading(path, REMEDY):
        rows = csv.DictReader(io.StringIO(_checked(path, folder / FOLDER / SUSPECTS_DIGEST).decode(**ENCODING), newline=""))
        kinds: dict[str, Any] = {field.name: field.type for field in fields(SuspectRow)}
        return [SuspectRow(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]


def suspects_or_note(folder: Path) -> list[SuspectRow] | None:
    """See `read_suspects`. A file that was edited, as one does while correcting labels, or damaged gives a note and `None`: the rest of the
    report is valid.
    """
    try:
        return read_suspects(folder)
    except DamagedFile as error:
        print_line(f"note: {error.path} was edited or is damaged ({error.reason}), so the report leaves it out")
        return None


def write_pictures(folder: Path, name: str, tensors: Mapping[str, Tensor], captions: Sequence[str] = ()) -> None:
    """Write `name.safetensors`, with the captions in its metadata."""
    text = json.dumps([caption.encode(**ENCODING).decode("utf-8", "replace") for caption in captions])
    write_tensors(folder / FOLDER / f"{name}.safetensors", tensors, {KEY: str(FORMAT), "captions": text})


def read_features(folder: Path) -> tuple[Array, Array, Array | None] | None:
    """Features (n, C) float32, labels (n,), and whether each was classified wrongly (n,), which an earlier version did not write; `None`
    where there are none.
    """
    for name in ("features", "codes"):  # codes: format 0
        if found := _read_tensors(folder, name):
            tensors, _ = found
            wrong = tensors["wrong"].numpy() if "wrong" in tensors else None
            return tensors[name].to(torch.float32).numpy(), tensors["labels"].numpy(), wrong
    return None


def read_pictures(folder: Path, name: str) -> Pictures | None:
    """Images and captions of `name.safetensors`; `None` where there are none."""
    with reading(folder / FOLDER / f"{name}.safetensors", REMEDY):
        found = _read_tensors(folder, name)
        return found and Pictures(found[0]["images"].permute(0, 2, 3, 1).numpy(), json.loads(found[1]["captions"]))


def _read_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], JsonObject] | None:
    path = folder / FOLDER / f"{name}.safetensors"
    if not path.is_file():
        return None
    with reading(path, REMEDY):
        tensors, metadata = read_tensors(path)
        return tensors, upgraded({**metadata, KEY: int(metadata.get(KEY, 0))}, path)
