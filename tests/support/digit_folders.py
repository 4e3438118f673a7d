"""Drawn digits as a folder with a folder for each class."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(root: Path, numbers: Mapping[int, int]) -> Path:
    """Write the first `numbers[k]` images of each digit k. More images of a digit include the fewer ones. Returns the folder."""
    found, done = load_digits(), Counter()
    for image, label in zip(found.images, found.target.tolist(), strict=True):
        if done[label] < numbers.get(label, 0):
            folder = root / f"digit{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((32, 32)).save(folder / f"{done[label]}.png")
            done[label] += 1
    return root
