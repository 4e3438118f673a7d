"""Test accuracy of linear probes on features of random crops: crops of stored pixels against crops of decoded images, in pairs of one seed.

python benchmarks/hardware/pixel_probes.py --data DATA [--seeds 5] [--size 160] [--images 200] [--out FILE]

A probe is fitted on the features (SqueezeNet 1.1, average-pooled) of one crop of each training image; test images are the same in a pair.
Minutes, where the runs of `pixel_accuracy.py` take hours. DATA holds `images` and `weights`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _ledger import interval
from _measure import machine, written
from _options import count, existing
from torch import Tensor

from ftlit import fit_probe, load_backbone
from ftlit.data.images import image_reader
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import eval_transform, train_transform
from ftlit.features.stored_pixels import StoredPixels
from ftlit.models.backbone import Backbone
from ftlit.models.precision import autocast_of, device_of, precision_for
from ftlit.seeding import derived_seed

WEIGHTS = "squeezenet1_1_imagenet_torchvision.pth"
Labelled = list[tuple[Path, int]]


def images_of(folder: Path, most: int) -> tuple[Labelled, Labelled]:
    """Training and test images of each class, at most `most`; without such folders 20 of each class train."""
    found: dict[str, Labelled] = {"train": [], "test": []}
    is_split = (folder / "train").is_dir()
    for split in found if is_split else ("",):
        for label, of_class in enumerate(sorted((folder / split).iterdir())):
            paths = sorted(of_class.iterdir())
            Random(0).shuffle(paths)
            parts = {split: paths[:most]} if is_split else {"train": paths[:20], "test": paths[20 : 20 + most // 5]}
            for name, chosen in parts.items():
                found[name] += [(path, label) for path in chosen]
    return found["train"], found["test"]


def vectors(backbone: Backbone, inputs: Sequence[Tensor], precision: str) -> Tensor:
    """Pooled features of the last cut."""
    with torch.inference_mode(), autocast_of(precision, "cpu"):
        batches = (torch.stack(list(inputs[i : i + 16])) for i in range(0, len(inputs), 16))
        return torch.cat([backbone.pool(backbone(batch)).float() for batch in batches])


def differences(data: Path, name: str, size: int, most: int, seeds: int) -> list[float]:
    """Accuracy on stored pixels less that on decoded images, for each seed."""
    spec = InputSpec(size=size)
    backbone = load_backbone("squeezenet1_1", weights=str(data / "weights" / WEIGHTS)).eval().to(memory_format=torch.channels_last)
    read, crop, precision = image_reader(spec), train_transform(spec), precision_for(backbone, device_of("cpu"))
    stored, (train, test) = StoredPixels.of(crop), images_of(data / "images" / name, most)
    assert stored
    labels, expected = (torch.tensor([label for _, label in part]) for part in (train, test))
    tested = vectors(backbone, [eval_transform(spec)(read(path)) for path, _ in test], precision)
    rows = [stored.write(read(path)) for path, _ in train]

    def accuracy(seed: int, *, of_rows: bool) -> float:
        inputs = []
        for i, (path, _) in enumerate(train):
            torch.manual_seed(derived_seed(seed, 0, i))
            inputs.append(stored.view(rows[i]) if of_rows else crop(read(path)))
        return float((fit_probe(vectors(backbone, inputs, precision), labels).predict(tested) == expected).float().mean())

    return [accuracy(seed, of_rows=True) - accuracy(seed, of_rows=False) for seed in range(seeds)]


def main(arguments: Any = None) -> None:
    """Measure, print a line for each data set and one for all, and write them if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=existing, required=True)
    parser.add_argument("--sets", default="hymenoptera,cats_dogs,sign_digits")
    parser.add_argument("--seeds", type=count, default=5)
    parser.add_argument("--size", type=count, default=160)
    parser.add_argument("--images", type=count, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every: list[float] = []
    rows = []
    for name in given.sets.split(","):
        found = differences(given.data, name, given.size, given.images, given.seeds)
        every += found
        for what, values in ((name, found), ("all", every)):
            mean, half = interval(values)
            rows.append({"data": what, "difference": mean, "half": half, "differences": list(values)})
            print(f"{what}: {mean:+.4f}{'' if half is None else f' +- {half:.4f}'}", flush=True)
    if given.out:
        written(given.out, machine(), {name: value for name, value in vars(given).items() if name not in ("out", "data")}, rows)


if __name__ == "__main__":
    main()
