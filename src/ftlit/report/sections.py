"""The sections of a report with a figure: title, what the figure shows, and the function that draws it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL.Image import Image

from ftlit.report import figures, picture_grids
from ftlit.report.contents import RunData


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: its heading.
        meaning: what the figure shows, with `{noun}` for the examples: images or texts.
        draw: the figure, or `None` where the run left no data for it.
    """

    title: str
    meaning: str
    draw: Callable[[RunData], Figure | Image | None]


SECTIONS: Mapping[str, Section] = {
    "samples": Section(
        "Training images as the network sees them",
        "Drawn at random, resized, cropped and augmented as in training, with their classes.",
        picture_grids.samples,
    ),
    "curves": Section(
        "Loss, accuracy, learning rates",
        "Dashed: on batches of train, which are augmented; solid: on val after each epoch. Each shade of the background is a stage. Below: "
        "the learning rate of each parameter group.",
        figures.curves,
    ),
    "layers": Section(
        "Trained layers by stage", "Which layers trained in which optimizer steps; vertical lines are beginnings of stages.", figures.layers
    ),
    "stages": Section(
        "Time and memory by stage", "Duration of each stage, validation included, and the most memory in use during it.", figures.stages
    ),
    "confusion": Section("Confusion matrix", "Rows: true classes; columns: predicted classes; numbers of test {noun}.", figures.confusion),
    "mistakes": Section(
        "Most confident errors",
        "Test {noun} whose wrong prediction has the highest probability.",
        picture_grids.mistakes,
    ),
    "suspects": Section(
        "Possibly mislabelled", "Training {noun} whose label is improbable for heads that were fitted without them.", picture_grids.suspects
    ),
    "calibration": Section(
        "Calibration",
        "Bars: the share of correct predictions among those of about the same probability; pale bars have few {noun}. Dots: the same "
        "share, at the mean probability of the bar. On the dashed line both are equal; below it the probabilities are too high.",
        figures.calibration,
    ),
    "features": Section(
        "Feature map (t-SNE)",
        "Test {noun} by the features that the head reads, in two dimensions: neighbours have similar features; distances between groups "
        "mean little. Black crosses mark errors.",
        figures.features,
    ),
    "depth": Section(
        "Accuracy by depth", "Accuracy of probes on the frozen features of each layer, the lowest layer at the left.", figures.depth
    ),
}
