"""Write the files of a run's folder, and its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ftlit.data.dataset import Examples
from ftlit.data.input_spec import InputSpec
from ftlit.data.pictures import describe_pictures, picture_of
from ftlit.data.transforms import Transform
from ftlit.errors import one_line
from ftlit.features.fill import evaluating
from ftlit.files import remove_parts, write_atomically
from ftlit.finetuning.plan import Plan
from ftlit.formats import ENCODING, write_json
from ftlit.formatting import shell_command
from ftlit.lit.datamodules.feature_data import FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.printing import print_line
from ftlit.probes.nearest import TrainVectors
from ftlit.recipes.config.candidates import choice_of_run
from ftlit.recipes.config.hydra_internals import choices
from ftlit.recipes.config.overrides import OF_ITS_FOLDER, arguments, repeated_words, typed_command
from ftlit.recipes.run.resume import write_config
from ftlit.recipes.run.split_file import store_split
from ftlit.report import run_files
from ftlit.report.contents import NEAREST, Predictions
from ftlit.report.scores import most_confident_errors
from ftlit.run_folder import COMMAND
from ftlit.seeding import derived_seed, kept_random_state

MAX_IMAGES = 12  # in a figure of the report
PACKAGES = ("ftlit", "torch", "torchvision", "lightning", "hydra-core")


def write_folder(cfg: DictConfig, data: Any, *, resumed: bool = False) -> None:
    """Write `config.yaml`, composed and resolved, `class_names.json` and `split.json`; of a new run also `command.json`."""
    folder = Path(cfg.paths.run)
    if not resumed:
        run_files.remove_suspects(folder)
        write_command(folder)
    for place in (folder, folder / "checkpoints", folder / run_files.FOLDER):
        remove_parts(place)  # of a run that was killed
    write_config(cfg)
    write_atomically(folder / "class_names.json", json.dumps(data.class_names, ensure_ascii=False, indent=1).encode(**ENCODING))
    store_split(folder, images_of(data))


def write_command(folder: Path) -> None:
    """Write `command.json`: the command of this run, and the words with which `again=RUN` repeats it in a new folder."""
    words = [word for word in repeated_words() if not OF_ITS_FOLDER.match(word)]
    write_json(folder / COMMAND, {"command": shell_command([*typed_command(), *words]), "words": words})


def write_run(cfg: DictConfig, data: Any, plan_rows: Sequence[tuple[str, str]], plan: Plan | None = None) -> None:
    """Write what the report shows and is known before training: plan, counts, sample images."""
    folder, chosen = Path(cfg.paths.run), choices()
    name = cfg.backbone.get("name", chosen.get("backbone"))
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    run_files.clear(folder)
    about = [("command", shell_command([*typed_command(), *arguments(cfg.paths.run)])), ("versions", versions)]
    images = images_of(data)
    if images is not None and isinstance(images.input_spec, InputSpec) and (shown := describe_pictures(images.input_spec)):
        about.append(("pictures", shown))
    run_files.write_run(
        folder,
        {
            "title": f"{name} on {chosen.get('data')}, {datetime.now():%Y-%m-%d %H:%M}",
            "plan": [*plan_rows, *about],
            "warnings": list(plan.warnings) if plan else [],
            "layers": [{"layer": row.layer, "size": row.size, "modes": row.modes} for row in plan.rows] if plan else [],
            "class_names": list(data.class_names),
            "counts": {split: dict(counts) for split, counts in data.counts.items()},
            "multilabel": bool(data.multilabel),
            "noun": images.input_spec.noun if images else "examples",
            "backbones": choice_of_run(cfg.paths.run),
        },
    )
    if images is not None and isinstance(images.input_spec, InputSpec):
        train = images.collection.splits["train"]
        places = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed))[:MAX_IMAGES].tolist()
        captions = [_label(train, place, data) for place in places]
        _write_images(folder, "samples", images.input_spec, _transformed(train, places, images.transforms["train"], cfg.seed), captions)


@dataclass(frozen=True)
class Similar:
    """What finds the training images that are similar to others.

    Args:
        backbone: as it is in the network, on its device.
        train: features of the training images by this backbone.
    """

    backbone: Backbone
    train: TrainVectors

    def to(self, images: Tensor) -> Tensor:
        """Places (n, `NEAREST`) of the training images nearest to images (n, 3, S, S), the nearest first."""
        weight = next(self.backbone.parameters(), images)  # its number format may be that of trainer.precision
        with torch.inference_mode(), evaluating(self.backbone):
            features = self.backbone.upto(self.train.cut)(images.to(weight))
            return self.train.nearest(self.backbone.pool(features).cpu(), NEAREST)


def write_run_report(
    cfg: DictConfig, data: Any, tested: Predictions, features: Mapping[str, Tensor], similar: Similar | None = None
) -> None:
    """Write the predictions and features of the test images (see `Recorder`) and `report.html`, and print its path. An error here does not
    fail a run whose results are written.
    """
    from ftlit.report.html import write_report  # here: matplotlib takes a second

    try:
        _write_tested(cfg, data, tested, features, similar)
        print_line(f"report: {write_report(cfg.paths.run)}")
    except Exception as error:  # a full disk, an image that is gone, a bug of ours: the results of the run are valid
        print_line(f"no report: {one_line(error)}")


def _write_tested(cfg: DictConfig, data: Any, tested: Predictions, features: Mapping[str, Tensor], similar: Similar | None) -> None:
    """Write the digests of the tables, predictions, features, and the images of the most confident errors and beside them."""
    folder = Path(cfg.paths.run)
    run_files.write_digests(folder)
    run_files.write_predictions(folder, tested, data.class_names)
    if len(features["features"]):
        run_files.write_pictures(folder, "features", features)
    images = images_of(data)
    if images is None or not isinstance(images.input_spec, InputSpec):
        return
    train = images.collection.splits["train"]
    if suspects := (run_files.suspects_or_note(folder) or [])[:MAX_IMAGES]:
        captions = [f"{row.label} ({row.probability:.2f})\n{row.suggested}? ({row.suggested_probability:.2f})" for row in suspects]
        shown = _transformed(train, [row.place for row in suspects], images.transforms["val"], cfg.seed)
        _write_images(folder, "suspected", images.input_spec, shown, captions)
    places = most_confident_errors(tested)[:MAX_IMAGES]
    if places:
        captions = [_caption(tested, place, data.class_names) for place in places]
        images_NCHW = _transformed(images.collection.splits["test"], places, images.transforms["test"], cfg.seed)
        _write_images(folder, "mistakes", images.input_spec, images_NCHW, captions)
        if similar and len(similar.train.vectors) == len(train) >= NEAREST:
            _write_nearest(cfg, data, similar, images_NCHW)


def _write_nearest(cfg: DictConfig, data: Any, similar: Similar, errors: Tensor) -> None:
    """Write the training images nearest to each of the errors (n, 3, S, S). Without them the rest of the report is valid, so an exception,
    such as that of a device without memory, gives a note.
    """
    images = images_of(data)
    assert images is not None and isinstance(images.input_spec, InputSpec)
    train = images.collection.splits["train"]
    try:
        near = similar.to(errors).flatten().tolist()
        captions = [f"nearest {number % NEAREST + 1}\n{_label(train, place, data)}" for number, place in enumerate(near)]
        shown = _transformed(train, near, images.transforms["val"], cfg.seed)
        _write_images(Path(cfg.paths.run), "nearest", images.input_spec, shown, captions)
    except Exception as error:
        print_line(f"note: no nearest training images in the report: {one_line(error)}")


def _caption(tested: Predictions, place: int, class_names: Sequence[str]) -> str:
    predicted, label = (" ".join(class_names[number] for number in labels[place]) for labels in (tested.predicted, tested.labels))
    return f"predicted {predicted} ({tested.probability[place]:.2f})\nis {label}"


def _label(examples: Examples, place: int, data: Any) -> str:
    return " ".join(data.class_names[label] for label in examples.labels[place])


def images_of(data: Any) -> ImageData | None:
    """The images of a built-in data module; `None` for a custom one."""
    found = data.images if isinstance(data, FeatureData) else data
    return found if isinstance(found, ImageData) else None


def _transformed(examples: Examples, places: Sequence[int], transform: Transform, seed: int) -> Tensor:
    """Images (n, 3, S, S) after the transform, whose random numbers come from the seed."""
    with kept_random_state():
        torch.manual_seed(derived_seed(seed, MAX_IMAGES))
        return torch.stack([transform(examples.load(examples.sources[place])) for place in places])


def _write_images(folder: Path, name: str, spec: InputSpec, images: Tensor, captions: Sequence[str]) -> None:
    shown = (picture_of(images, spec) * 255).round().to(torch.uint8)
    run_files.write_pictures(folder, name, {"images": shown}, captions)
