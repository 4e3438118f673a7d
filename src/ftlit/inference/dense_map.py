"""The command `ftlit predict --dense`: a probability map over each image."""

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ftlit.errors import UserError, unknown
from ftlit.files import write_figure
from ftlit.formatting import printable
from ftlit.inference.load_network import load
from ftlit.inference.network import Network
from ftlit.inference.network_inputs import NamedInputs
from ftlit.inference.prior import Prior, sum_notes


def predict_dense(
    run: str, paths: Sequence[str], *, label: str | None, size: int | None, out: str, trust: bool, prior: Prior | None = None
) -> None:
    """Draw the probability of `label` (`None`: of the most probable class) over each image, and print the paths of the figures.

    Args:
        run: folder of a run, or a checkpoint.
        paths: see `predict`.
        label: a class.
        size: pixels of the shorter side of an image after resizing; `None`: twice the training size.
        out: folder of the figures, created if necessary; the name of a figure is that of its image with `_dense.png`.
        trust: see `ftlit.load`.
        prior: see `PredictOptions`.

    Raises:
        UserError: a run, an image, a class or a size that cannot be used.
    """
    network = load(run, trust=trust)
    if prior is not None:
        network = network.with_prior(prior)
        for line in sum_notes(prior):
            print(f"ftlit: {line}", file=sys.stderr)
    if label is not None and label not in network.class_names:
        raise unknown("class", label, network.class_names)
    images = [path for _, path in NamedInputs(paths, network.input_spec)]
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / f"{Path(path).stem}_dense.png" for path in images]
    if twice := [str(target) for target in targets if targets.count(target) > 1]:
        raise UserError(f"two images would be written to {twice[0]}: predict them separately, each with its own --out")
    for path, target in zip(images, targets, strict=True):
        picture, probabilities = network.map_of(path, size)
        number = int(probabilities.mean(dim=(1, 2)).argmax()) if label is None else network.class_names.index(label)
        _draw(target, picture, probabilities[number], network, f"{network.class_names[number]} in {Path(path).name}")
        print(printable(str(target)))


def _draw(target: Path, picture: Tensor, map_hw: Tensor, network: Network, title: str) -> None:
    """The image (H, W, 3), and over it the probability of each window, at the centre of the window."""
    from matplotlib.figure import Figure  # here, so that --help is fast; no pyplot: no screen is needed

    (height, width), (rows, columns), size = picture.shape[:2], map_hw.shape, network.input_spec.size
    figure = Figure(figsize=(6.4 * width / height + 1.2, 6.4), layout="constrained")
    axes = figure.add_subplot(xticks=[], yticks=[])
    axes.set_title(printable(title), parse_math=False)  # a class name may look like a formula
    axes.imshow(picture.numpy(), extent=(0, width, height, 0))
    stride = [(length - size) / (places - 1) if places > 1 else size for length, places in ((height, rows), (width, columns))]
    top, left = (size / 2 - step / 2 for step in stride)
    extent = (left, left + columns * stride[1], top + rows * stride[0], top)
    shown = axes.imshow(map_hw.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.5, extent=extent, interpolation="bilinear")
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.colorbar(shown, ax=axes, label=f"probability in a window of {size} px", alpha=1.0, shrink=0.8)
    write_figure(target, figure, dpi=100)
