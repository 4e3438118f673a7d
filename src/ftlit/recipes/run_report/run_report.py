"""Write what the report of a run shows: what is known before training, and the results."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from ftlit.data.input_spec import InputSpec
from ftlit.data.pictures import describe_pictures
from ftlit.errors import one_line
from ftlit.export.model_card import pretrained_weights
from ftlit.finetuning.plan import Plan
from ftlit.formatting import shell_command
from ftlit.printing import print_line
from ftlit.recipes.config.candidates import choice_of_run
from ftlit.recipes.config.hydra_internals import choices
from ftlit.recipes.config.overrides import arguments, typed_command
from ftlit.recipes.run.artifacts import images_of
from ftlit.recipes.run_report.run_pictures import ReportedNetwork, write_images, write_samples
from ftlit.recipes.start.start_run import copy_of
from ftlit.report import run_files
from ftlit.report.contents import Predictions

PACKAGES = ("ftlit", "torch", "torchvision", "lightning", "hydra-core")


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
            "title": f"{name} on {_data_name(cfg, chosen)}, {datetime.now():%Y-%m-%d %H:%M}",
            "plan": [*plan_rows, *about],
            "warnings": list(plan.warnings) if plan else [],
            "layers": [{"layer": row.layer, "size": row.size, "modes": row.modes} for row in plan.rows] if plan else [],
            "class_names": list(data.class_names),
            "counts": {split: dict(counts) for split, counts in data.counts.items()},
            "multilabel": bool(data.multilabel),
            "noun": images.input_spec.noun if images else "examples",
            "backbones": choice_of_run(cfg.paths.run),
            **({"weights": weights} if (weights := _earlier_weights(cfg)) else {}),
        },
    )
    write_samples(cfg, data)


def _earlier_weights(cfg: DictConfig) -> str:
    """The pretrained weights of the run of `init_from`; empty without one: then the plan names those of this run."""
    return pretrained_weights(copy_of(cfg)) if cfg.get("init_from") is not None else ""


def _data_name(cfg: DictConfig, chosen: Mapping[str, str]) -> str:
    """The name of the folder or csv file of the data; of other data sources the name of the option."""
    source = chosen.get("data", "data")
    place = cfg.data.get("csv") or (cfg.data.get("root") if source in ("folder", "unlabelled") else None)
    return source if place is None else Path(str(place)).expanduser().resolve().name


def write_run_report(
    cfg: DictConfig,
    data: Any,
    tested: Predictions,
    features: Mapping[str, Tensor],
    network: Callable[[], ReportedNetwork | None] = lambda: None,
) -> None:
    """Write the predictions and features of the test images (see `Recorder`) and `report.html`, and print its path. An error here does not
    fail a run whose results are written.
    """
    from ftlit.report.html import write_report  # here: matplotlib takes a second

    try:
        write_tested(cfg, data, tested, features, network())
        print_line(f"report: {write_report(cfg.paths.run)}")
    except Exception as error:  # a full disk, an image that is gone, a bug of ours: the results of the run are valid
        print_line(f"no report: {one_line(error)}")


def write_interrupted_report(
    cfg: DictConfig, data: Any, text: str, metrics: Mapping[str, float], tested: Predictions | None, features: Mapping[str, Tensor]
) -> None:
    """Write `report.html` of a run that was interrupted, and print its path; see `write_run_report`.

    Args:
        cfg: of the run.
        data: of the run.
        text: what was interrupted.
        metrics: that are known.
        tested: predictions on the test images; `None` where there are none.
        features: of test images, with `tested`.
    """
    if tested is None:
        return write_untested_report(cfg, text, metrics)
    _write_state(cfg, text, metrics)
    write_run_report(cfg, data, tested, features)


def write_untested_report(cfg: DictConfig, text: str, metrics: Mapping[str, float] = MappingProxyType({})) -> None:
    """Write `report.html` of a run without predictions on test images, and print its path.

    Args:
        cfg: of the run.
        text: why there are none.
        metrics: that are known.
    """
    from ftlit.report.html import write_report  # here: matplotlib takes a second

    _write_state(cfg, text, metrics)
    run_files.write_digests(Path(cfg.paths.run))
    print_line(f"report: {write_report(cfg.paths.run)}")


def _write_state(cfg: DictConfig, text: str, metrics: Mapping[str, float]) -> None:
    folder = Path(cfg.paths.run)
    run_files.write_run(folder, {**run_files.read_run(folder), "state": text, "metrics": dict(metrics)})


def write_tested(cfg: DictConfig, data: Any, tested: Predictions, features: Mapping[str, Tensor], network: ReportedNetwork | None) -> None:
    """Write the digests of the tables, predictions, features, and the images of errors and possibly mislabelled examples."""
    folder = Path(cfg.paths.run)
    run_files.write_digests(folder)
    run_files.write_predictions(folder, tested, data.class_names)
    if len(features["features"]):
        run_files.write_pictures(folder, "features", features)
    write_images(cfg, data, tested, network)
