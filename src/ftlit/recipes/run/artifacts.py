"""What a recipe leaves for the report of its run, and the report itself."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from ftlit.data.dataset import Examples
from ftlit.data.input_spec import InputSpec
from ftlit.data.transforms import Transform
from ftlit.errors import one_line
from ftlit.finetuning.plan import Plan
from ftlit.lit.datamodules.feature_data import FeatureData
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.recipes.config.overrides import arguments
from ftlit.recipes.run import console as words
from ftlit.report import run_files as files
from ftlit.report.contents import Predictions
from ftlit.report.scores import surest_mistakes
from ftlit.seeding import derived_seed, kept_random_state

PICTURES = 12
PACKAGES = ("ftlit", "torch", "torchvision", "lightning", "hydra-core")


def write_run(cfg: DictConfig, data: Any, plan_rows: Sequence[tuple[str, str]], plan: Plan | None = None) -> None:
    """What is known before training: plan, counts, samples."""
    folder, choices = Path(cfg.paths.run), HydraConfig.get().runtime.choices
    name = cfg.backbone.get("name", choices.get("backbone"))
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    files.clear(folder)
    about = [("command", shlex.join(["python", "train.py", *arguments(cfg.paths.run)])), ("versions", versions)]
    files.write_json(
        folder,
        files.RUN,
        {
            "title": f"{name} on {choices.get('data')}, {datetime.now():%Y-%m-%d %H:%M}",
            "plan": [*plan_rows, *about],
            "warnings": list(plan.warnings) if plan else [],
            "layers": [{"layer": row.layer, "size": row.size, "modes": row.modes} for row in plan.rows] if plan else [],
            "class_names": list(data.class_names),
            "counts": {split: dict(counts) for split, counts in data.counts.items()},
            "multilabel": bool(data.multilabel),
        },
    )
    images = images_of(data)
    if images is not None and isinstance(images.input_spec, InputSpec):
        train = images.collection.splits["train"]
        places = torch.randperm(len(train), generator=torch.Generator().manual_seed(cfg.seed))[:PICTURES].tolist()
        captions = [" ".join(data.class_names[label] for label in train.labels[place]) for place in places]
        _write_pictures(folder, "samples", images.input_spec, _seen(train, places, images.transforms["train"], cfg.seed), captions)


def say_report(cfg: DictConfig, data: Any, tested: Predictions, features: Mapping[str, Tensor]) -> None:
    """Write what was seen of the test images (see `Recorder`) and `report.html`, and say where that is. What goes wrong there does not end
    a run that has ended well.
    """
    from ftlit.report.html import write_report  # here: matplotlib takes a second

    try:
        _write_tested(cfg, data, tested, features)
        words.console().print(f"report: {write_report(cfg.paths.run)}", soft_wrap=True, markup=False)
    except Exception as error:  # a full disk, a picture that is gone, a fault of ours: the run's results are there, and stand
        words.console().print(f"no report: {one_line(error)}", soft_wrap=True, markup=False)


def _write_tested(cfg: DictConfig, data: Any, tested: Predictions, features: Mapping[str, Tensor]) -> None:
    """Predictions, features, and pictures of the surest mistakes."""
    folder = Path(cfg.paths.run)
    files.write_tested(folder, tested, data.class_names)
    if len(features["features"]):
        files.write_tensors(folder, "features", features)
    images = images_of(data)
    if images is None or not isinstance(images.input_spec, InputSpec):
        return
    places = surest_mistakes(tested)[:PICTURES]
    if places:
        captions = [_caption(tested, place, data.class_names) for place in places]
        seen = _seen(images.collection.splits["test"], places, images.transforms["test"], cfg.seed)
        _write_pictures(folder, "mistakes", images.input_spec, seen, captions)


def _caption(tested: Predictions, place: int, class_names: Sequence[str]) -> str:
    said, label = (" ".join(class_names[number] for number in labels[place]) for labels in (tested.predicted, tested.labels))
    return f"taken for {said} ({tested.probability[place]:.2f})\nis {label}"


def images_of(data: Any) -> ImageData | None:
    """The images behind a data module of ours."""
    found = data.images if isinstance(data, FeatureData) else data
    return found if isinstance(found, ImageData) else None


def _seen(examples: Examples, places: Sequence[int], transform: Transform, seed: int) -> Tensor:
    """(n, 3, S, S), as a network sees these images; what is drawn for them comes from the seed."""
    with kept_random_state():
        torch.manual_seed(derived_seed(seed, PICTURES))
        return torch.stack([transform(examples.load(examples.sources[place])) for place in places])


def _write_pictures(folder: Path, name: str, spec: InputSpec, images: Tensor, captions: Sequence[str]) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    shown = ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    files.write_tensors(folder, name, {"images": shown}, captions)
