"""What `ftlit predict` does: a line for each image, or a map over it."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ftlit.errors import UserError, unknown
from ftlit.prediction import Network, load_run


def predict(run: str, paths: Sequence[str]) -> None:
    """Print a csv: path, likeliest class, its probability. Raises `UserError` for a run or an image that cannot be read."""
    network = load_run(run)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "label", "probability"])
    for path in paths:
        probabilities = network.probabilities(path)
        best = int(probabilities.argmax())
        writer.writerow([path, network.class_names[best], f"{float(probabilities[best]):.4f}"])


def predict_dense(run: str, paths: Sequence[str], *, label: str | None, size: int | None, out: str) -> None:
    """Draw where each image looks like `label` (`None`: like its likeliest class), and print the pictures' paths.

    Args:
        run: folder of a run.
        paths: of images.
        label: a class.
        size: pixels that an image's shorter side is brought to; `None`: twice that of the training.
        out: folder of the pictures, made where it is not there; each is called as its image, with `_dense.png`.

    Raises:
        UserError: a run, an image, a class or a size that cannot be used.
    """
    network = load_run(run)
    if label is not None and label not in network.class_names:
        raise unknown("class", label, network.class_names)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{Path(path).stem}_dense.png" for path in paths]
    if twice := [str(target) for target in targets if targets.count(target) > 1]:
        raise UserError(f"two images would be drawn as {twice[0]}: predict them apart, each with its own --out")
    for path, target in zip(paths, targets, strict=True):
        picture, probabilities = network.map_of(path, size)
        number = int(probabilities.mean(dim=(1, 2)).argmax()) if label is None else network.class_names.index(label)
        _draw(target, picture, probabilities[number], network, f"{network.class_names[number]} in {Path(path).name}")
        print(target)


def _draw(target: Path, picture: Tensor, map_hw: Tensor, network: Network, title: str) -> None:
    """The picture (H, W, 3), and over it the probability of each window, drawn where the middle of the window is."""
    from matplotlib.figure import Figure  # here, so that --help is fast; no pyplot: no screen is needed

    (height, width), (rows, columns), size = picture.shape[:2], map_hw.shape, network.input_spec.size
    figure = Figure(figsize=(6.4 * width / height + 1.2, 6.4), layout="constrained")
    axes = figure.add_subplot(title=title, xticks=[], yticks=[])
    axes.imshow(picture.numpy(), extent=(0, width, height, 0))
    stride = [(length - size) / (places - 1) if places > 1 else size for length, places in ((height, rows), (width, columns))]
    top, left = (size / 2 - step / 2 for step in stride)
    extent = (left, left + columns * stride[1], top + rows * stride[0], top)
    shown = axes.imshow(map_hw.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.5, extent=extent, interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(shown, ax=axes, label=f"probability in the {size} px around", alpha=1.0, shrink=0.8)
    figure.savefig(target, dpi=100)
