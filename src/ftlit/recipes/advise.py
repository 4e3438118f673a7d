"""From config to a scenario: features of every cut of some training images from one pass, measured, and the config composed again."""

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import inf
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.markup import escape
from rich.table import Table

from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.backbone import Backbone
from ftlit.models.heads import LinearProbeHead
from ftlit.probes.advice import Advice, Depth, Measurements, advise
from ftlit.probes.linear_probe import fit_probe
from ftlit.probes.logme import logme
from ftlit.recipes import finetune
from ftlit.recipes.config.hydra_internals import instantiate, set_choices
from ftlit.recipes.config.overrides import OF_TRAINING, SEARCH, given
from ftlit.recipes.config.validate import bind, check_input, check_labelled
from ftlit.recipes.run import console as words
from ftlit.recipes.run.feature_setup import features_of
from ftlit.recipes.run.resume import checkpoint_of, read_config
from ftlit.run_folder import read_advice, write_advice

AUTO = "auto"
SCENARIOS = ("small_similar", "small_different", "large_similar", "large_different")
ONE_PER_CLASS_L2 = 0.1  # of a head where no image can be held out: one digit a class is told as well by all from 10 to 1e-4
MOST_IMAGES = 2000  # that are measured
OF_LENGTH = ("experiment", "hparams_search", "debug")  # overlays that may change the trainer; an option of its group is as long as any
TIMED = 8  # images of the step that is timed
SHARDING = (
    "fsdp",
    "FSDP",
    "ModelParallel",
    "model_parallel",
)  # in the name of a strategy that `ftlit.lit.datamodules.feature_data.SHARDED` has


def run(cfg: DictConfig) -> float:
    """Print what was measured, the advice, and what each scenario would cost in time here; write `advice.json` to the run's folder. Returns
    the held-out accuracy at the advised cut.
    """
    choice = HydraConfig.get().runtime.choices.get("scenario")
    if choice != AUTO:
        raise UserError(f"scenario={choice}: advice is about which scenario to take; leave it out")
    if cfg.resume:
        raise UserError("resume=true: advice takes a pass over some images and goes on from nothing; leave it out")
    finetune.quiet()
    checkpoint_of(cfg)  # whose advice this would replace
    cfg = adopted(_compose([f"scenario={AUTO}"]))
    backbone, data = parts_of(cfg)
    measured, advice = look(cfg, backbone, data)
    advice, _ = suited(cfg, measured, advice)
    write(cfg, advice, measured)
    if measured is None:
        words.console().print(escape(f"scenario={advice.scenario}: {advice.reason}"), soft_wrap=True)
        return float("nan")
    words.console().print(table_of(measured, advice))
    words.console().print(escape(f"* {advice.reason}"), soft_wrap=True)
    costs = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in costs_of(backbone, data))
    words.console().print(f"about, here: {costs}", soft_wrap=True)
    command = shlex.join([*overrides_of(cfg, advice), *(word for word in _given() if not word.startswith("recipe="))])
    words.console().print(escape(f"python train.py {command}"), soft_wrap=True)
    return next(depth.accuracy for depth in measured.depths if depth.cut == advice.cut)


def settled(cfg: DictConfig) -> DictConfig:
    """The config itself; where its scenario is `auto`, composed again with the advised one, below what a person gave. The first process
    measures, those that it starts read what it wrote, and so does a run that goes on.

    Raises:
        UserError: the folder holds a run already; several processes that were started side by side.
    """
    if HydraConfig.get().runtime.choices.get("scenario") != AUTO:
        return cfg
    if cfg.resume:
        read_config(cfg.paths.run)  # refuses a run that this program cannot resume, before its advice is read
        if read_advice(cfg.paths.run) is None:
            return cfg  # it began with another scenario, or there is no run: whoever resumes it raises the error
    elif getattr(rank_zero_only, "rank", 0) == 0:
        checkpoint_of(cfg)
        if TorchElasticEnvironment.detect() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("scenario=auto measures before there are several processes: give the scenario that `ftlit advise` names")
        finetune.quiet()
        measured, advice = look(cfg, *parts_of(cfg))
        advice, advised = suited(cfg, measured, advice)
        write(cfg, advice, measured)
        words.console().print(escape(f"scenario=auto: {advice.scenario}. {advice.reason}"), soft_wrap=True)
        return adopted(advised)
    written = read_advice(cfg.paths.run)
    if written is None:
        raise UserError("scenario=auto: the first process left no advice here: give the scenario that `ftlit advise` names")
    return adopted(_compose(overrides_of(cfg, Advice(**written["advice"]))))


def parts_of(cfg: DictConfig) -> tuple[Backbone, Any]:
    """What the advice is about: backbone and data."""
    bind(cfg)
    backbone = instantiate(cfg.backbone)
    check_input(cfg, backbone.input_spec)
    return backbone, instantiate(cfg.data, input_spec=backbone.input_spec)


def look(cfg: DictConfig, backbone: Backbone, data: Any) -> tuple[Measurements | None, Advice]:
    """What was measured (`None`: this data cannot be, or there is nothing to transfer), and the advice."""
    check_labelled(data)
    counts = data.counts["train"]
    lowest = backbone.index(backbone.reinit[0]) if backbone.reinit else len(backbone.cuts)  # that is drawn anew
    if not backbone.pretrained or not lowest:
        top = backbone.cuts[-1]
        why = "The weights are random. There is nothing to transfer: all trains."
        return None, Advice("large_different", top, why, pretrained=False, solvable=False)
    pretrained = backbone.upto(lowest - 1)
    top = pretrained.cuts[-1]
    if type(data) is not ImageData or data.multilabel or not min(counts.values()):
        why = "This data cannot be measured, which takes one label an image, and images of each class"
        return None, Advice("large_similar", top, f"{why}. No head can be solved on it either: all trains.", solvable=False)
    solvable = not any(name in str(cfg.trainer.get("strategy")) for name in SHARDING)
    if max(counts.values()) < 2:
        why = f"One training {data.input_spec.noun.removesuffix('s')} a class is few: the head alone. None can be held out to measure a cut"
        return None, Advice("small_similar", top, f"{why}, or to choose the head's L2 penalty.", solvable=solvable, holds_out=False)
    measured = measure(cfg, pretrained, data)
    droppable = "cut" in cfg.backbone and not backbone.reinit  # no cut: somebody's own
    return measured, replace(advise(measured, droppable=droppable, asked=_asked(cfg)), solvable=solvable)


def suited(cfg: DictConfig, measured: Measurements | None, advice: Advice) -> tuple[Advice, DictConfig]:
    """The advice that fits what was given, and the config as it says."""
    try:
        return advice, _compose(overrides_of(cfg, advice))
    except HydraException:  # a value was given that the advised scenario does not have, schedule.epoch for instance
        why = f"What was given does not fit {advice.scenario}: it is large_similar"
        solvable = advice.solvable and not _gives("schedule")  # whose first stage may be the head's own
        top = measured.depths[-1].cut if measured else advice.cut
        advice = replace(advice, scenario="large_similar", cut=top, reason=f"{advice.reason} {why}.", solvable=solvable)
        return advice, _compose(overrides_of(cfg, advice))


def measure(cfg: DictConfig, backbone: Backbone, data: ImageData) -> Measurements:
    """From one pass over some training images."""
    images = sum(data.counts["train"].values())
    few = data.with_few(max(2, MOST_IMAGES // data.num_classes))
    with features_of(cfg, backbone, few, backbone.cuts, ("train",)) as found:
        features = found["train"]["average"]
        labels, depths = features.targets, []
        assert labels is not None
        for cut in features.cuts:
            vectors = features[cut].read(range(len(features)))
            depths.append(Depth(cut, fit_probe(vectors, labels, kind="ridge").score or 0.0, logme(vectors, labels)))
    # as scenario=auto is composed already, unless somebody gave another length; composing takes half a second
    plain = compose(HydraConfig.get().job.config_name, ["scenario=large_similar"]) if _changes_length() else cfg
    batches = images / data.batch_size
    return Measurements(
        images,
        data.num_classes,
        depths,
        measured=len(features),
        commonest=float(labels.bincount().max()) / len(features),
        steps=_epochs(plain, batches) * batches / plain.trainer.get("accumulate_grad_batches", 1),
        noun=data.input_spec.noun,
    )


def _epochs(cfg: DictConfig, batches: float) -> float:
    """How many a run over so many batches an epoch lasts."""
    trainer = cfg.trainer
    epochs = inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = inf if trainer.get("max_steps", -1) in (None, -1) else trainer.max_steps
    return float(min(epochs, steps * trainer.get("accumulate_grad_batches", 1) / batches))


def write(cfg: DictConfig, advice: Advice, measured: Measurements | None) -> None:
    """`advice.json`, all at once."""
    write_advice(cfg.paths.run, asdict(advice), None if measured is None else asdict(measured))


def overrides_of(cfg: DictConfig, advice: Advice) -> list[str]:
    """What the advice says on the command line, as far as `cfg` has left it open."""
    cut = [f"backbone.cut={advice.cut}"] if advice.scenario == "small_different" and cfg.backbone.get("cut") is None else []
    head = ["head=linear"] if not advice.solvable and solves(cfg) and not _gives("head") else []
    at_once = ["schedule=all_at_once"] if not advice.pretrained and not _gives("schedule") else []
    l2 = [f"probe.l2=[{ONE_PER_CLASS_L2:g}]"] if not advice.holds_out and solves(cfg) and not head and not _gives("probe") else []
    return [f"scenario={advice.scenario}", *cut, *head, *at_once, *l2]


def adopted(cfg: DictConfig) -> DictConfig:
    """The config to go on with, without Hydra's part; what Hydra knows of the choices is brought up to date by that."""
    set_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def _compose(instead: list[str]) -> DictConfig:
    """With this in place of the scenario that was given, below all else that was."""
    return compose(HydraConfig.get().job.config_name, [*instead, *_given()], return_hydra_config=True)


def solves(cfg: DictConfig) -> bool:
    """Whether the head is one that is solved."""
    return str(cfg.head._target_).endswith(LinearProbeHead.__name__)


def _asked(cfg: DictConfig) -> str:
    """What was given that only training reads, on the command line or by an experiment."""
    if cfg.recipe == "lr_find":
        return "recipe=lr_find"
    if asking := given(*OF_TRAINING, "backbone.reinit", SEARCH):
        return ", ".join(asking)
    plain = compose(HydraConfig.get().job.config_name, [f"scenario={AUTO}"]) if _gives("experiment") else cfg
    changed = any(OmegaConf.select(cfg, name) != OmegaConf.select(plain, name) for name in OF_TRAINING)
    return ", ".join(given("experiment")) if changed else ""


def _gives(group: str) -> bool:
    return bool(given(group))


def _changes_length() -> bool:
    return any(map(_gives, OF_LENGTH)) or any(word.lstrip("+~").startswith("trainer.") for word in _given())


def _given() -> list[str]:
    return [word for word in HydraConfig.get().overrides.task if not word.startswith("scenario=")]


def table_of(measured: Measurements, advice: Advice) -> Table:
    """A row a layer, top first: held-out accuracy of a linear probe, LogME."""
    table = Table("layer", "held-out accuracy", "LogME")
    for depth in reversed(measured.depths):
        mark = " *" if depth.cut == advice.cut else ""
        table.add_row(depth.cut, f"{depth.accuracy:.4f}{mark}", f"{depth.logme:.3f}")
    return table


def costs_of(backbone: Backbone, data: ImageData) -> Iterator[tuple[str, float]]:
    """Seconds that each scenario would take here, for the steps and passes alone, by the time of one step on a few images."""
    loading, forward, step = _times(backbone, data)
    sizes = {split: sum(counts.values()) for split, counts in data.counts.items()}
    for name in SCENARIOS:
        try:
            cfg = _compose([f"scenario={name}"])
        except HydraException:  # what was given does not fit it
            continue
        once = sum(sizes.values()) * max(loading, forward)  # features, and the test images
        warm_up = 0 if solves(cfg) else cfg.schedule.get("epoch") or 0  # of the head alone, from features
        epochs = 0.0 if name.startswith("small") else max(0.0, _epochs(cfg, sizes["train"] / data.batch_size) - warm_up)
        yield name, once + epochs * (sizes["train"] * max(loading, step) + sizes["val"] * max(loading, forward))


def _times(backbone: Backbone, data: ImageData) -> tuple[float, float, float]:
    """Seconds an image: to load it, to run it, to train with it."""
    train, device = data.collection.splits["train"], next(backbone.parameters()).device
    begun = time.perf_counter()
    images = torch.stack([data.transforms["train"](train.load(train.sources[i % len(train)])) for i in range(TIMED)])
    loading = (time.perf_counter() - begun) / TIMED / max(1, data.num_workers)
    images = images.to(device, next(backbone.parameters()).dtype if images.is_floating_point() else None)

    def timed(*, training: bool) -> float:
        for _ in range(2):  # the first one warms up
            begun = time.perf_counter()
            with torch.set_grad_enabled(training):
                features = backbone.pool(backbone(images))
            total = features.float().sum()
            if training:
                torch.autograd.backward(total)
            float(total.detach())  # waits for the device
        return (time.perf_counter() - begun) / TIMED

    return loading, timed(training=False), timed(training=True)
