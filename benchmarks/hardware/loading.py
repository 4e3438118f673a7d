"""Loading of images for training: decoding, random crop and flip of image files, in the forms in which a loader can give them.

python benchmarks/hardware/loading.py --data FOLDER [--images 400] [--rounds 5] [--workers 2] [--out benchmarks/results/loading.json]

FOLDER holds image files at any depth. The sides alternate. The first rows are CPU times of one worker, in batches of 32; the last one is
the duration of an epoch with loader processes, which other programs on the machine lengthen.
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import Row, compared, in_turn, machine, table, timed, written
from _options import count, existing
from torch.utils.data import DataLoader

from ftlit.data.collate import MixedCollate
from ftlit.data.dataset import Collection, Examples, LabelledImages
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.samplers import Batches
from ftlit.data.sources.folder_files import list_unlabelled
from ftlit.data.transforms import Transform, train_transform
from ftlit.features.extract import ImageViews
from ftlit.features.image_hashes import HashCache, image_hashes
from ftlit.features.store import Store
from ftlit.features.stored_pixels import StoredImages, StoredPixels, write_pixels
from ftlit.features.table import Rows

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


def stored(collection: Collection, view: Transform, folder: Path) -> LabelledImages:
    """The same images from stored pixels."""
    form, examples = StoredPixels.of(view), collection.splits["train"]
    assert form
    table = Store(folder).table(form.key(examples.load))
    images = ImageViews(examples, image_hashes(examples, HashCache(folder)), form.write)
    places = sorted(table.missing(images.hashes).tolist())
    write_pixels(table, (images[[place]] for place in places))
    table.refresh()
    kept = StoredImages.of(examples, Rows(table, images.hashes), form)
    return LabelledImages(replace(collection, splits={"train": kept.examples}), "train", kept.transform, as_pixels=True)


def epoch_seconds(batches: Batches, workers: int) -> float:
    """Duration of an image in an epoch with worker processes that have started."""
    places = [[(0, i) for i in range(first, min(first + BATCH, len(batches.images)))] for first in range(0, len(batches.images), BATCH)]
    loader = DataLoader(batches, sampler=places, batch_size=None, num_workers=workers, persistent_workers=True)  # type: ignore[arg-type]
    list(loader)  # starts the processes
    return timed(lambda: sum(1 for _ in loader)) / len(batches.images)


def rows(folder: Path, images: int, rounds: int, workers: int) -> list[Row]:
    """The table: time of an image in a worker, bytes of a batch, and an epoch."""
    spec = InputSpec()
    collection, view = photos(folder, images, spec), train_transform(spec)
    with TemporaryDirectory() as cache:
        views = {name: LabelledImages(collection, "train", view, as_pixels=name != "floats") for name in ("floats", "8 bits")}
        views["stored"] = stored(collection, view, Path(cache))
        sides = {name: Batches(images, MixedCollate("none", 1), 0) for name, images in views.items()}
        worker = {name: partial(cpu_seconds, batches) for name, batches in sides.items()}
        in_turn(worker, 1)  # warms up: the files are in memory then
        found, sizes = in_turn(worker, rounds), {name: [float(side[[(0, 0)] * BATCH][0].nbytes)] for name, side in sides.items()}
        epochs = in_turn({name: partial(epoch_seconds, sides[name], workers) for name in ("8 bits", "stored")}, rounds)
    return [
        compared("CPU time of an image in a worker: images of 8 bits / normalised floats", found, "8 bits", "floats", "<= 0.8"),
        compared(f"bytes of a batch of {BATCH}: images of 8 bits / normalised floats", sizes, "8 bits", "floats", "<= 0.25", unit="B"),
        compared("CPU time of an image in a worker: stored pixels / files", found, "stored", "8 bits", "<= 0.33"),
        compared(f"an image in an epoch with {workers} workers: stored pixels / files", epochs, "stored", "8 bits", "<= 0.33"),
    ]


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=existing, required=True)
    parser.add_argument("--images", type=count, default=400)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--workers", type=count, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = rows(given.data, given.images, given.rounds, given.workers)
    print(table(found))
    if given.out:
        options = {name: value for name, value in vars(given).items() if name not in ("out", "data")}
        written(given.out, machine(), options, found)


if __name__ == "__main__":
    main()
