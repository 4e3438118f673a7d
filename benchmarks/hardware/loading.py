"""Loading of images for training: decoding, random crop and flip of image files, in the forms in which a loader can give them.

python benchmarks/hardware/loading.py --data FOLDER [--images 400] [--rounds 5] [--out benchmarks/results/loading.json]

FOLDER holds image files at any depth. CPU time of one worker, in batches of 32; the sides alternate in one process.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import Row, compared, in_turn, machine, table, written
from _options import count, existing

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Collection, Examples, LabelledImages
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.samplers import Batches
from ftlit.data.sources.folder_files import list_unlabelled
from ftlit.data.transforms import train_transform

BATCH = 32


def photos(folder: Path, images: int, spec: InputSpec) -> Collection:
    """This number of images of a folder, evenly spaced in its list, as the training images of one class."""
    paths = [listed.path for listed in list_unlabelled(folder)[0]]
    chosen = [paths[i * len(paths) // images] for i in range(min(images, len(paths)))]
    return Collection({"train": Examples(chosen, [(0,)] * len(chosen), image_reader(spec), chosen)}, ["image"])


def cpu_seconds(batches: Batches, epoch: int = 0) -> float:
    """CPU time of an image in an epoch."""
    images = len(batches.images)
    begin = time.process_time()
    for first in range(0, images, BATCH):
        batches[[(epoch, i) for i in range(first, min(first + BATCH, images))]]
    return (time.process_time() - begin) / images


def rows(folder: Path, images: int, rounds: int) -> list[Row]:
    """The table: time of an image in a worker, and bytes of a batch."""
    spec = InputSpec()
    collection, view = photos(folder, images, spec), train_transform(spec)
    forms = {"floats": False, "8 bits": True}
    views = {name: LabelledImages(collection, "train", view, as_pixels=bits) for name, bits in forms.items()}
    sides = {name: Batches(images, MixedCollate("none", 1), 0) for name, images in views.items()}
    timed = {name: partial(cpu_seconds, batches) for name, batches in sides.items()}
    in_turn(timed, 1)  # warms up: the files are in memory then
    sizes = {name: [float(batches[[(0, 0)] * BATCH][0].nbytes)] for name, batches in sides.items()}
    return [
        compared("CPU time of an image in a worker: 8 bits / normalised floats", in_turn(timed, rounds), "8 bits", "floats", "<= 0.8"),
        compared(f"bytes of a batch of {BATCH}", sizes, "8 bits", "floats", "0.25", unit="B"),
    ]


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=existing, required=True)
    parser.add_argument("--images", type=count, default=400)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = rows(given.data, given.images, given.rounds)
    print(table(found))
    if given.out:
        written(given.out, machine(), {"images": given.images, "rounds": given.rounds}, found)


if __name__ == "__main__":
    main()
