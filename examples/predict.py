"""Predict images with the network of a run:

python train.py hydra.run.dir=runs/digits
python examples/predict.py runs/digits photo.png more/photos
"""

import sys
from pathlib import Path

import ftlit


def images_in(path: Path) -> list[Path]:
    """The path itself, or the png and jpg files below a folder."""
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in (".png", ".jpg")) if path.is_dir() else [path]


if __name__ == "__main__":
    run, *paths = sys.argv[1:]
    network = ftlit.load(run)  # from the run's checkpoint alone; trust=True calls a custom head
    print(network)
    for path in (image for given in paths for image in images_in(Path(given))):
        prediction = network(path)  # a path, a PIL image, a tensor, or a list of them in one batch
        print(path, prediction.label, f"{prediction.probability:.3f}", prediction.top(3))
