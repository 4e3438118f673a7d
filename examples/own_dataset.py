"""A data set of your own, here circles and squares that are drawn when they are read: python own_dataset.py

As an option of the command line (data=shapes): docs/extending.md, "Data source".
"""

import random

from PIL import Image, ImageDraw

from ftlit import ImageData, InputSpec, extract_features, fit_probe, load_backbone
from ftlit.data.dataset import SPLITS, Collection, Examples

CLASSES = ["circle", "square"]
SIZES = {"train": 100, "val": 40, "test": 40}  # images of each split


def read(key: tuple[int, int]) -> Image.Image:
    """Draw the image of (seed, class): called each time that the image is needed; a file would be opened here."""
    seed, label = key
    place, image = random.Random(seed), Image.new("RGB", (32, 32), "white")
    side, left, top = place.randint(8, 16), place.randint(0, 15), place.randint(0, 15)
    draw = ImageDraw.Draw(image)
    (draw.ellipse, draw.rectangle)[label]((left, top, left + side, top + side), outline="black", width=2)
    return image


def shapes(input_spec: InputSpec, *, batch_size: int = 32) -> ImageData:
    """Circles and squares in three splits."""
    first, splits = 0, {}
    for split in SPLITS:
        keys = [(first + number, number % 2) for number in range(SIZES[split])]
        splits[split] = Examples(keys, [(label,) for _, label in keys], read)  # key and classes of each image
        first += SIZES[split]
    return ImageData(Collection(splits, CLASSES), input_spec, augment="none", batch_size=batch_size, num_workers=0)


if __name__ == "__main__":
    data = shapes((backbone := load_backbone("glyph")).input_spec)
    probe = fit_probe(extract_features(backbone, data.train_dataloader()))
    print(f"test accuracy {probe.accuracy(extract_features(backbone, data.test_dataloader())):.3f} of a linear probe")
