"""Compare the result of a run with the run of `init_from`, on the same test images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ftlit.data.samplers import EvalOrder
from ftlit.features.fill import evaluating
from ftlit.features.image_hashes import cached_hashes
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.recipes.console.start_comparison import StartComparison
from ftlit.recipes.run.artifacts import images_of
from ftlit.recipes.run_start import RunStart
from ftlit.report.contents import Predictions


@dataclass(frozen=True)
class StartPredictions:
    """Classes that the run of `init_from` predicts for the test images, by their numbers in the data; -1 for a class that is gone."""

    predicted: Sequence[int]


def predict_with_start(start: RunStart, data: Any, precision: str, device: torch.device) -> StartPredictions | None:
    """Predict the test images with the run of `init_from`, while its backbone has the weights that training begins with.

    Args:
        start: the run; its network moves to the device.
        data: of the new run.
        precision: in Lightning's names.
        device: to compute on.

    Returns:
        The predictions; `None` for data that are not built in, or that have several labels per image.
    """
    images = images_of(data)
    if images is None or images.multilabel or images.batch_overrides:
        return None
    network = replace(start.run.network.to(device), precision=precision)
    loader = images.loader("test", EvalOrder(images.collection.splits["test"], images.batch_size))
    now = {then: number for number, then in start.changes.known.items()}
    with evaluating(network.backbone), evaluating(network.head):
        found = [network.logits(batch).argmax(dim=1).cpu() for batch, _ in loader]
    return StartPredictions([now.get(number, -1) for number in torch.cat(found).tolist()])


def compare(start: RunStart, data: Any, before: StartPredictions | None, tested: Predictions | None) -> StartComparison | None:
    """Compare two runs on the test images that the earlier one has never read for training; `None` where there are none.

    Args:
        start: the earlier run.
        data: of the new run.
        before: of the earlier run; `None`: there are none.
        tested: of the new run; `None`: there are none.
    """
    if before is None or tested is None:
        return None
    images = images_of(data)
    assert isinstance(images, ImageData)
    test = images.collection.splits["test"]
    if start.run.split is None or test.contents is None or len(tested.predicted) != len(test):
        return None
    places = [place for place, image in enumerate(cached_hashes(test)) if start.run.split.split_of.get(str(image), "test") == "test"]
    if not places:
        return None
    labels = [test.labels[place][0] for place in places]
    return StartComparison(
        start.run.name,
        [before.predicted[place] == label for place, label in zip(places, labels, strict=True)],
        [tested.predicted[place] == (label,) for place, label in zip(places, labels, strict=True)],
        [label in start.changes.known for label in labels],
        len(test) - len(places),
        images.input_spec.noun,
    )
