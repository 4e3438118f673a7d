"""Data of a run for its report."""

from pathlib import Path

import numpy as np

from ftlit.report.contents import NEAREST, Pictures, Predictions, RunData, StageRecord, SuspectRow

HOSTILE = "$x^$ </script><img src=x onerror=alert(1)>"


def run_data_of(number: int, images: int = 400) -> RunData:
    """Return the data of a run with this number of classes; some names contain HTML, a script or math."""
    draw = np.random.default_rng(0)
    names = [f"class {i}" for i in range(number - 1)] + [HOSTILE]
    labels = draw.integers(number, size=images)
    predicted = np.where(draw.random(images) < 0.7, labels, draw.integers(number, size=images))
    predictions = Predictions(
        [f"{HOSTILE}/{i}.png" for i in range(images)], [(int(i),) for i in labels], [(int(i),) for i in predicted], draw.random(images)
    )
    pictures = Pictures(draw.integers(256, size=(7, 8, 8, 3), dtype=np.uint8), [HOSTILE] * 7)
    stages = [StageRecord("head", 0, 0, 1.5, 2**30), StageRecord(HOSTILE, 1, 10, 2.5, 2**31)]
    layers = [{"layer": layer, "size": 10, "modes": ["eval", "train"]} for layer in ("stem", "head")]
    counts = {split: {name: 3 for name in names} for split in ("train", "val", "test")}
    about = {"title": HOSTILE, "plan": [["ftlit", HOSTILE]], "warnings": [HOSTILE], "layers": layers, "counts": counts}
    metrics = [{"step": float(i), "train/loss": 1 / (i + 1), "val/loss": 1.0, "lr-AdamW/head": 1e-3} for i in range(20)]
    features = draw.normal(size=(60, 5)).astype(np.float32), labels[:60], (predicted != labels)[:60]
    depths = {"ridge": {"stem": 0.5, "top": 0.7}}
    suspects = [SuspectRow(HOSTILE, HOSTILE, names[0], 0.01, 0.9, place) for place in range(3)]
    nearest = Pictures(np.repeat(pictures.images, NEAREST, axis=0), [HOSTILE] * 7 * NEAREST)
    parts = (metrics, stages, predictions, features, pictures, pictures, depths, {}, suspects, pictures, nearest)
    return RunData(Path("run"), about, names, *parts)
