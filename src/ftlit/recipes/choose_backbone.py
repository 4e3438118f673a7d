"""Resolve `backbone=auto`: measure the candidates on some training images, and put the chosen one into the config of the run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from ftlit.errors import UserError
from ftlit.files import removed_unless
from ftlit.finetuning.presets import head_only
from ftlit.lit.datamodules.indexed_images import IndexedImages, require_indexed_images
from ftlit.lit.trainer_internals import rank_before_trainer
from ftlit.models.backbone import Backbone
from ftlit.models.heads import Combine
from ftlit.printing import print_line
from ftlit.probes.backbone_choice import BackboneChoice, MeasuredBackbone, choose_backbone
from ftlit.probes.fitted_head.head_probe import fit_head
from ftlit.recipes.checks.validate import bind
from ftlit.recipes.config.candidates import BackboneCandidate, candidates_of, words_with
from ftlit.recipes.config.class_weights import class_weights_of
from ftlit.recipes.config.hydra_internals import adopt, compose_again, instantiate, set_task_overrides
from ftlit.recipes.console.choice_table import print_choice
from ftlit.recipes.processes.launched import first_ahead
from ftlit.recipes.resuming.resume import CONFIG, checkpoint_of
from ftlit.recipes.run.feature_setup import features_of
from ftlit.recipes.run.head import head_arguments
from ftlit.recipes.run.parts import RunParts, load_parts
from ftlit.recipes.run.time_estimates import has_probe_head, seconds_per_image
from ftlit.run_folder import BACKBONE, read_backbone_choice, write_backbone_choice

MIN_SECONDS = 0.5  # in which the speed of a candidate is measured
MAX_LOADED = 4  # candidates in memory at a time


@contextmanager
def backbone_of_run(cfg: DictConfig) -> Iterator[DictConfig]:
    """`resolve_backbone` for the run in a block. If the run ends before it began, the choice that was written for it is removed."""
    with removed_unless(Path(cfg.paths.run, CONFIG), Path(cfg.paths.run, BACKBONE)):
        yield resolve_backbone(cfg)


def resolve_backbone(cfg: DictConfig) -> DictConfig:
    """The config composed with the chosen backbone in place of `backbone=auto`, also in the overrides of this program.

    The first process measures; the others, and a resumed run, read `backbone.json`.

    Raises:
        UserError: the folder holds a run already, or a run that is resumed did not choose its backbone; see also `candidates_of`.
    """
    bind(cfg)
    if not cfg.resume:
        with first_ahead("backbone", cfg.rank_timeout):
            if rank_before_trainer() == 0:
                return _compose(_measured(cfg).words, cfg)
    stored = read_backbone_choice(cfg.paths.run)
    if stored is None and cfg.resume:
        checkpoint_of(cfg)  # raises: the run began with another backbone, or there is none
    if stored is None:
        raise UserError(
            f"backbone=auto failed, because process 0 wrote no {BACKBONE} to {cfg.paths.run}: run ftlit advise backbone=auto, and give the "
            "backbone=... that it prints"
        )
    return _compose(stored["words"], cfg)


def _compose(words: Sequence[str], cfg: DictConfig) -> DictConfig:
    composed = compose_again(overrides := words_with(words, cfg), with_hydra=True)
    set_task_overrides(overrides)
    return adopt(composed)


def _measured(cfg: DictConfig) -> BackboneCandidate:
    """Measure the candidates, write and print the choice."""
    checkpoint_of(cfg)
    if isinstance(cuts := cfg.head.get("cuts"), ListConfig) and any(isinstance(cut, str) for cut in cuts):
        raise UserError(
            f"head.cuts={list(cuts)} names layers of one backbone, but backbone=auto compares several: give a number of layers, "
            f"head.cuts={len(cuts)}"
        )
    candidates, left_out = candidates_of(cfg)
    if not candidates:
        raise UserError("backbone=auto finds no weights of a backbone: give backbone.among=[NAME,...], whose weights are then downloaded")
    by_name = {candidate.name: candidate for candidate in candidates}

    @lru_cache(MAX_LOADED)
    def parts_of(name: str) -> tuple[DictConfig, RunParts]:
        own = compose_again(words_with(by_name[name].words, cfg))
        return own, load_parts(own)

    def measure(name: str, images: int) -> MeasuredBackbone:
        print_line(f"backbone=auto: measuring {name}")
        return measure_backbone(*parts_of(name), images)

    first = parts_of(candidates[0].name)[1].data
    choice = choose_backbone(list(by_name), measure, _check_images(first))
    noun = first.input_spec.noun
    write_backbone_choice(cfg.paths.run, _record(choice, by_name[choice.chosen], left_out, noun))
    print_choice(choice, left_out, noun)
    return by_name[choice.chosen]


def _check_images(data: Any) -> int:
    """The number of training images. Raises `UserError` for data on which backbones cannot be compared."""
    images = require_indexed_images(data, "backbone=auto")
    if images.multilabel:
        raise UserError("backbone=auto compares heads for one label per image, but these data have several: give backbone=NAME")
    counts = images.counts["train"].values()
    if max(counts, default=0) < 2:
        raise UserError("backbone=auto needs a class with two or more training images to compare backbones: give backbone=NAME")
    return sum(counts)


def measure_backbone(cfg: DictConfig, parts: RunParts, images: int) -> MeasuredBackbone:
    """Measure a backbone by the head that a run fits on it, in cross-validation, and by its speed.

    The features are those that the run reads too: they go into its cache.

    Args:
        cfg: the composed config with this backbone.
        parts: of this config.
        images: number of training images, a share of each class; at least two of each class are read.

    Raises:
        UserError: `probe.l2` is a single value, so that no image is held out.
    """
    backbone: Backbone = parts.backbone
    data: IndexedImages = parts.data
    total = sum(data.counts["train"].values())
    sample = data.with_share(images / total) if images < total else data
    cuts, combine = _head_of(cfg, backbone)
    with features_of(cfg, backbone, sample, backbone.cuts, ("train",)) as found:  # all cuts: scenario=auto reads them next
        features = found["train"]["average"]
        fitted = fit_head(instantiate(cfg.probe), features, (), cuts, combine, class_weights_of(cfg, data))
    held_out = fitted.held_out_logits
    if held_out is None:
        raise UserError(f"backbone=auto needs several L2 penalties, but probe.l2={cfg.probe.l2} is one: give several, or backbone=NAME")
    _, seconds = seconds_per_image(backbone, sample, cfg.trainer.precision, at_least=MIN_SECONDS)
    size = sum(tensor.numel() * tensor.element_size() for tensor in backbone.state_dict().values())
    return MeasuredBackbone(held_out.logits.argmax(dim=1) == held_out.labels, 1 / seconds, size)


def _head_of(cfg: DictConfig, backbone: Backbone) -> tuple[Sequence[str], Combine]:
    """The cuts that a fitted head reads, and how they are combined; for another head as by default."""
    own = cfg if has_probe_head(cfg) else compose_again(["head=linear_probe"])
    arguments = head_arguments(own, backbone, head_only(backbone.layers_with_parameters))
    return arguments.get("cuts") or backbone.cuts[-1:], own.head.combine


def _record(choice: BackboneChoice, chosen: BackboneCandidate, left_out: int, noun: str) -> dict[str, Any]:
    """The content of `backbone.json`."""
    rows = [
        {
            "name": name,
            "accuracy": found.accuracy,
            "standard_error": found.standard_error,
            "images": choice.images[name],
            "images_per_second": found.images_per_second,
            "bytes": found.bytes,
        }
        for name, found in choice.measured.items()
    ]
    about = {"chosen": choice.chosen, "words": list(chosen.words), "most_accurate": choice.most_accurate}
    return {**about, "left_out": left_out, "noun": noun, "candidates": rows}
