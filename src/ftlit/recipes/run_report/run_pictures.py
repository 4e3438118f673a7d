"""The images in the report of a run: training images, errors with what spoke for them, possibly mislabelled examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ftlit.data.dataset import Examples
from ftlit.data.input_spec import InputSpec
from ftlit.data.pictures import picture_of
from ftlit.data.transforms import Transform
from ftlit.errors import one_line
from ftlit.features.fill import evaluating
from ftlit.files import write_atomically
from ftlit.models.backbone import Backbone
from ftlit.models.class_maps import logit_difference_maps
from ftlit.printing import print_line
from ftlit.probes.nearest import TrainVectors
from ftlit.recipes.run.artifacts import images_of
from ftlit.report import run_files
from ftlit.report.contents import NEAREST, Pictures, Predictions, SuspectRow
from ftlit.report.picture_grids import grid, jpeg_of, overlaid
from ftlit.report.scores import most_confident_errors
from ftlit.seeding import derived_seed, kept_random_state

MAX_IMAGES = 12  # in a figure of the report


@dataclass(frozen=True)
class ReportedNetwork:
    """The network whose predictions a report shows.

    Args:
        backbone: as it was tested, on its device.
        head: likewise.
        train: features of the training images by this backbone; `None` if they are not at hand.
    """

    backbone: Backbone
    head: nn.Module
    train: TrainVectors | None = None

    def nearest_to(self, images: Tensor, train: TrainVectors) -> Tensor:
        """Places (n, `NEAREST`) of the training images nearest to images (n, C, S, S), the nearest first."""
        with torch.inference_mode(), evaluating(self.backbone):
            features = self.backbone.upto(train.cut)(self._as_input(images))
            return train.nearest(self.backbone.pool(features).cpu(), NEAREST)

    def maps_of(self, images: Tensor, predicted: Sequence[int], labels: Sequence[int]) -> Tensor | None:
        """By how much the logit of the predicted class exceeds that of the true one, by position; see `logit_difference_maps`."""
        with torch.inference_mode(), evaluating(self.backbone):
            numbers = (torch.tensor(own, device=images.device) for own in (predicted, labels))
            found = logit_difference_maps(self.backbone, self.head, self._as_input(images), *numbers)
            return None if found is None else found.cpu()

    def _as_input(self, images: Tensor) -> Tensor:
        return images.to(next(self.backbone.parameters(), images))  # its number format may be that of trainer.precision


def write_samples(cfg: DictConfig, data: Any) -> None:
    """Write training images as the network sees them: `samples.safetensors`, and `samples.jpg` to look at before training."""
    images = images_of(data)
    if images is None or not isinstance(images.input_spec, InputSpec):
        return
    train, folder = images.collection.splits["train"], Path(cfg.paths.run)
    places = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed))[:MAX_IMAGES].tolist()
    captions = [_label(train, place, data) for place in places]
    shown = _shown(images.input_spec, _transformed(train, places, images.transforms["train"], cfg.seed))
    run_files.write_pictures(folder, "samples", {"images": shown}, captions)
    if drawn := grid(Pictures(shown.permute(0, 2, 3, 1).numpy(), captions)):
        write_atomically(folder / run_files.FOLDER / "samples.jpg", jpeg_of(drawn))


def write_images(cfg: DictConfig, data: Any, tested: Predictions, network: ReportedNetwork | None) -> None:
    """Write the images of possibly mislabelled examples and of the most confident errors, and what stands beside these."""
    folder, images = Path(cfg.paths.run), images_of(data)
    if images is None or not isinstance(spec := images.input_spec, InputSpec):
        return
    train = images.collection.splits["train"]
    if suspects := (run_files.suspects_or_note(folder) or [])[:MAX_IMAGES]:
        captions = [_suspect_caption(row) for row in suspects]
        shown = _transformed(train, [row.place for row in suspects], images.transforms["val"], cfg.seed)
        run_files.write_pictures(folder, "suspected", {"images": _shown(spec, shown)}, captions)
    places = most_confident_errors(tested)[:MAX_IMAGES]
    if places:
        errors = _transformed(images.collection.splits["test"], places, images.transforms["test"], cfg.seed)
        captions = [_caption(tested, place, data.class_names) for place in places]
        run_files.write_pictures(folder, "mistakes", {"images": _shown(spec, errors)}, captions)
        if network is None:
            return
        for what, write in (("maps", _write_maps), ("nearest training images", _write_nearest)):
            try:
                write(cfg, data, tested, places, errors, network)
            except Exception as error:  # such as a device without memory: the rest of the report is valid
                print_line(f"note: the report has no {what} ({one_line(error)})")


def _write_maps(cfg: DictConfig, data: Any, tested: Predictions, places: Sequence[int], errors: Tensor, network: ReportedNetwork) -> None:
    """Write what spoke for the predicted and for the true class in the errors (n, C, S, S)."""
    images = images_of(data)
    assert images is not None and isinstance(images.input_spec, InputSpec)
    if data.multilabel:
        return
    predicted, labels = ([own[place][0] for place in places] for own in (tested.predicted, tested.labels))
    if (maps := network.maps_of(errors, predicted, labels)) is not None:
        drawn = overlaid(_shown(images.input_spec, errors).permute(0, 2, 3, 1).numpy(), maps.numpy())
        captions = [f"red: {data.class_names[i]}\nblue: {data.class_names[j]}" for i, j in zip(predicted, labels, strict=True)]
        run_files.write_pictures(Path(cfg.paths.run), "maps", {"images": torch.from_numpy(drawn).permute(0, 3, 1, 2)}, captions)


def _write_nearest(
    cfg: DictConfig, data: Any, tested: Predictions, places: Sequence[int], errors: Tensor, network: ReportedNetwork
) -> None:
    """Write the training images nearest to each of the errors (n, C, S, S)."""
    images = images_of(data)
    assert images is not None and isinstance(images.input_spec, InputSpec)
    train = images.collection.splits["train"]
    if network.train is None or not len(network.train.vectors) == len(train) >= NEAREST:
        return
    near = network.nearest_to(errors, network.train).flatten().tolist()
    captions = [f"nearest {number % NEAREST + 1}\n{_label(train, place, data)}" for number, place in enumerate(near)]
    shown = _transformed(train, near, images.transforms["val"], cfg.seed)
    run_files.write_pictures(Path(cfg.paths.run), "nearest", {"images": _shown(images.input_spec, shown)}, captions)


def _caption(tested: Predictions, place: int, class_names: Sequence[str]) -> str:
    predicted, label = (" ".join(class_names[number] for number in labels[place]) for labels in (tested.predicted, tested.labels))
    return f"{Path(tested.items[place]).name}\npredicted {predicted} ({tested.probability[place]:.2f})\nis {label}"


def _suspect_caption(row: SuspectRow) -> str:
    classes = f"{row.label} ({row.probability:.2f})\n{row.suggested}? ({row.suggested_probability:.2f})"
    return f"{Path(row.item).name}\n{classes}"


def _label(examples: Examples, place: int, data: Any) -> str:
    return " ".join(data.class_names[label] for label in examples.labels[place])


def _transformed(examples: Examples, places: Sequence[int], transform: Transform, seed: int) -> Tensor:
    """Images (n, C, S, S) after the transform, whose random numbers come from the seed."""
    with kept_random_state():
        torch.manual_seed(derived_seed(seed, MAX_IMAGES))
        return torch.stack([transform(examples.load(examples.sources[place])) for place in places])


def _shown(spec: InputSpec, images: Tensor) -> Tensor:
    """Normalised images as pictures, uint8 (n, 3, S, S)."""
    return (picture_of(images, spec) * 255).round().to(torch.uint8)
