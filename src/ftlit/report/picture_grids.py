"""The figures of a report that show images: training images, errors, and possibly mislabelled examples."""

import numpy as np
from matplotlib.figure import Figure

from ftlit.report.contents import NEAREST, Array, Pictures, RunData


def samples(run: RunData) -> Figure | None:
    """Training images as the network sees them."""
    return _grid(run.samples)


def mistakes(run: RunData) -> Figure | None:
    """The test images with the most confident errors, each with the nearest training images beside it, where they are known."""
    if run.mistakes is None or run.nearest is None or len(run.nearest.images) != NEAREST * len(run.mistakes.images):
        return _grid(run.mistakes)
    images, captions = list[Array](), list[str]()
    for place, (image, caption) in enumerate(zip(run.mistakes.images, run.mistakes.captions, strict=True)):
        beside = slice(NEAREST * place, NEAREST * (place + 1))
        images += [image, *run.nearest.images[beside]]
        captions += [caption, *run.nearest.captions[beside]]
    return _grid(Pictures(np.stack(images), captions), columns=2 * (1 + NEAREST))


def suspects(run: RunData) -> Figure | None:
    """Training images that are possibly mislabelled."""
    return _grid(run.suspected)


def _grid(pictures: Pictures | None, columns: int = 6) -> Figure | None:
    if pictures is None or not len(pictures.images):
        return None
    columns = min(columns, len(pictures.images))
    rows = -(-len(pictures.images) // columns)
    height, width = pictures.images.shape[1:3]
    shrink = 1.504 / max(height, width)  # inches of a pixel
    figure = Figure(figsize=(1.6 * columns, 1.95 * rows))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1.6 * columns), ylim=(1.95 * rows, 0), autoscale_on=False)  # one: axes are slow to draw
    axes.set_axis_off()
    for place, (image, caption) in enumerate(zip(pictures.images, pictures.captions, strict=True)):
        row, column = divmod(place, columns)
        middle, top = 1.6 * (column + 0.5), 1.95 * row + 0.39
        across = shrink * width / 2
        axes.imshow(image, interpolation="nearest", aspect="auto", extent=(middle - across, middle + across, top + shrink * height, top))
        axes.text(middle, top - 0.08, caption, fontsize=7, ha="center", va="bottom")
    return figure
