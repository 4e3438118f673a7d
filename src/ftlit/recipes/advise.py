"""Run `recipe=advise` and `scenario=auto`: measure the features of every cut on some training images, and decide on a scenario."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.errors import UserError
from ftlit.files import removed_unless
from ftlit.formatting import count
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.strategies import keeps_whole_weights, shards_later
from ftlit.lit.trainer_internals import rank_before_trainer
from ftlit.models.backbone import Backbone
from ftlit.printing import print_line
from ftlit.probes.advice import Advice, Depth, Measurements, Reason, SizeReason, advise
from ftlit.probes.linear_probe import fit_probe
from ftlit.probes.logme import logme
from ftlit.recipes.config.class_weights import class_weights_of
from ftlit.recipes.config.hydra_internals import adopt, choices, compose_again, task_overrides
from ftlit.recipes.config.overrides import CLASS_WEIGHTS, OF_TRAINING, SEARCH, given, given_for_training
from ftlit.recipes.console import advice_text
from ftlit.recipes.console.results_table import print_advice
from ftlit.recipes.processes.launched import check_alone, first_ahead
from ftlit.recipes.resuming.resume import CONFIG, checkpoint_of, read_config
from ftlit.recipes.run.feature_setup import features_of
from ftlit.recipes.run.parts import RunParts, load_parts, try_own_parts
from ftlit.recipes.run.time_estimates import costs_of, epochs_of, has_probe_head
from ftlit.recipes.run.trainer import strategy_class
from ftlit.run_folder import ADVICE, read_advice, write_advice

AUTO = "auto"
SCENARIOS = ("small_similar", "small_different", "large_similar", "large_different")
L2_ONE_PER_CLASS = 0.1  # where no image can be held out to choose it: digits reach the same accuracy from 10 to 1e-4
MAX_MEASURED_IMAGES = 2000
MAY_CHANGE_LENGTH = ("experiment", "hparams_search", "debug")  # overlays that may set the number of epochs


def run(cfg: DictConfig) -> float:
    """Print the measurements, the advice, and the time that each scenario would take here; write `advice.json` to the run's folder.

    Returns:
        The held-out accuracy at the advised cut; NaN where nothing was measured.
    """
    choice = choices().get("scenario")
    if choice != AUTO:
        raise UserError(f"recipe=advise chooses the scenario: leave scenario={choice} out")
    if cfg.resume:
        raise UserError(f"recipe=advise cannot be resumed: leave resume={str(cfg.resume).lower()} out")
    check_alone(cfg.recipe)
    checkpoint_of(cfg)  # raises where the folder holds the advice of a run
    cfg = adopt(_compose([f"scenario={AUTO}"]))
    parts = load_parts(cfg)
    measured, advice = advise_on(cfg, parts)
    advice, _ = fit_to_overrides(cfg, measured, advice)
    write(cfg, advice, parts, measured)
    reason = _reason(advice, parts)
    if measured is None:
        print_line(f"scenario={advice.scenario}: {reason}")
        return float("nan")
    command = [*overrides_of(cfg, advice), *(word for word in _given() if not word.startswith("recipe="))]
    costs = costs_of(parts.backbone, parts.data, _configs(), cfg.trainer.precision)
    print_advice(measured, advice, reason, dict(costs), command)
    return next(depth.accuracy for depth in measured.depths if depth.cut == advice.cut)


def resolve_auto(cfg: DictConfig) -> DictConfig:
    """The config itself, or, where its scenario is `auto`, the config composed with the advised one; settings of the user win.

    The first process measures; the others, and a resumed run, read `advice.json`.

    Raises:
        UserError: the folder holds a run already.
    """
    if choices().get("scenario") != AUTO:
        return cfg
    if cfg.get("final"):
        remedy = "give init_from=RUN to take the recipe of a run, or scenario=... and trainer.max_epochs=..."
        if cfg.get("init_from"):
            remedy = "leave scenario=auto out, so that the recipe of the run in init_from is taken"
        raise UserError(f"final=true trains by a recipe that was chosen before, but scenario=auto would choose one: {remedy}")
    if cfg.resume:
        read_config(cfg.paths.run)  # refuses a run that this program cannot resume, before its advice is read
        if read_advice(cfg.paths.run) is None:
            return cfg  # the run began with another scenario, or there is none: resuming raises the error
    else:
        with first_ahead("advice", cfg.rank_timeout):
            if rank_before_trainer() == 0:
                return _measured(cfg)
    stored = read_advice(cfg.paths.run)
    if stored is None:
        raise UserError(
            f"scenario=auto failed, because process 0 wrote no advice.json to {cfg.paths.run}: on several machines, give hydra.run.dir=... "
            "in a folder that all share; on one machine, run ftlit advise, and give the scenario=... that it prints"
        )
    names = ("scenario", "cut", "pretrained", "fits_probe_head", "holds_out_images")
    return adopt(_compose(overrides_of(cfg, Advice(**{name: stored["advice"][name] for name in names}))))


@contextmanager
def advice_of_run(cfg: DictConfig) -> Iterator[DictConfig]:
    """`resolve_auto` for the run in a block. If the run ends before it began, the advice that was written for it is removed."""
    with removed_unless(Path(cfg.paths.run, CONFIG), Path(cfg.paths.run, ADVICE)):
        yield resolve_auto(cfg)


def _measured(cfg: DictConfig) -> DictConfig:
    """Measure, write and print the advice. Returns the config that it leads to."""
    checkpoint_of(cfg)
    parts = load_parts(cfg)
    try_own_parts(cfg, parts)
    measured, advice = advise_on(cfg, parts)
    advice, advised = fit_to_overrides(cfg, measured, advice)
    write(cfg, advice, parts, measured)
    print_line(f"scenario=auto: {advice.scenario}. {_reason(advice, parts)}")
    return adopt(advised)


def advise_on(cfg: DictConfig, parts: RunParts) -> tuple[Measurements | None, Advice]:
    """The measurements (`None`: this data cannot be measured, or there is nothing to transfer), and the advice."""
    backbone, data = parts.backbone, parts.data
    counts = data.counts["train"]
    lowest_random = backbone.index(backbone.reinit[0]) if backbone.reinit else len(backbone.cuts)
    if not backbone.pretrained or not lowest_random:
        reason = Reason(SizeReason.RANDOM_WEIGHTS)
        return None, Advice("large_different", backbone.cuts[-1], reason, pretrained=False, fits_probe_head=False)
    pretrained = backbone.upto(lowest_random - 1)
    top = pretrained.cuts[-1]
    if not isinstance(data, IndexedImages) or data.batch_overrides or data.multilabel or not min(counts.values()):
        return None, Advice("large_similar", top, Reason(SizeReason.NOT_MEASURABLE), fits_probe_head=False)
    strategy = strategy_class(cfg)
    fits_probe_head = keeps_whole_weights(strategy) or shards_later(strategy)
    if max(counts.values()) < 2:
        return None, Advice("small_similar", top, Reason(SizeReason.ONE_PER_CLASS), fits_probe_head=fits_probe_head, holds_out_images=False)
    measured = measure(cfg, pretrained, data)
    droppable = "cut" in cfg.backbone and not backbone.reinit  # a custom backbone may have no cut
    return measured, replace(advise(measured, droppable=droppable, requested=_requested(cfg)), fits_probe_head=fits_probe_head)


def measure(cfg: DictConfig, backbone: Backbone, data: IndexedImages) -> Measurements:
    """Measure every cut, from one pass over some training images."""
    images = sum(data.counts["train"].values())
    sample = data.with_few(max(2, MAX_MEASURED_IMAGES // data.num_classes))
    with features_of(cfg, backbone, sample, backbone.cuts, ("train",)) as found:
        features = found["train"]["average"]
        labels, depths = features.targets, []
        assert labels is not None
        print_line(f"fitting linear probes at {count(len(features.cuts), 'cut')} on {len(features):,} {data.input_spec.noun}")
        weights = class_weights_of(cfg, data)
        for cut in features.cuts:
            vectors = features[cut].read(range(len(features)))
            probe = fit_probe(features, cut=cut, kind="ridge", class_weights=weights)
            depths.append(Depth(cut, probe.score or 0.0, logme(vectors, labels)))
    # `auto` is composed as large_similar, so that only a changed length needs another composition, which takes half a second
    plain = compose_again(["scenario=large_similar"]) if _changes_length() else cfg
    batches = images / data.batch_size
    return Measurements(
        images,
        data.num_classes,
        depths,
        measured_images=len(features),
        majority_share=float(labels.bincount().max()) / len(features),
        steps=epochs_of(plain, batches) * batches / plain.trainer.get("accumulate_grad_batches", 1),
        noun=data.input_spec.noun,
    )


def fit_to_overrides(cfg: DictConfig, measured: Measurements | None, advice: Advice) -> tuple[Advice, DictConfig]:
    """The advice, replaced by large_similar where it does not have a setting that the user gave; and the config that it leads to."""
    try:
        return advice, _compose(overrides_of(cfg, advice))
    except HydraException:  # schedule.epoch, for instance
        fits_probe_head = advice.fits_probe_head and not given("schedule")  # whose first stage may train the head only
        top = measured.depths[-1].cut if measured else advice.cut
        reason = advice.reason and replace(advice.reason, misfit=advice.scenario)
        advice = replace(advice, scenario="large_similar", cut=top, reason=reason, fits_probe_head=fits_probe_head)
        return advice, _compose(overrides_of(cfg, advice))


def write(cfg: DictConfig, advice: Advice, parts: RunParts, measured: Measurements | None) -> None:
    """Write `advice.json`: `reason` is a text, `decision` holds its name and numbers."""
    decision = advice.reason and asdict(advice.reason)
    content = {**asdict(advice), "reason": _reason(advice, parts), "decision": decision}
    write_advice(cfg.paths.run, content, None if measured is None else asdict(measured))


def _reason(advice: Advice, parts: RunParts) -> str:
    data = parts.data
    text = advice_text.describe(advice.reason, parts.backbone.input_spec.noun, data.counts.get("train")) if advice.reason else ""
    schedule = given("schedule") if advice.scenario.startswith("small") else []
    return f"{text} But {' '.join(schedule)} is given, so this schedule, not the advice, decides which layers train." if schedule else text


def overrides_of(cfg: DictConfig, advice: Advice) -> list[str]:
    """The command-line overrides of an advice, except for those that the user has decided."""
    overrides = [f"scenario={advice.scenario}"]
    if advice.scenario == "small_different" and cfg.backbone.get("cut") is None:
        names_layers = isinstance(cfg.head.get("cuts"), ListConfig)  # the backbone ends there, not at the cut of the scenario either
        overrides.append(f"backbone.cut={'null' if names_layers else advice.cut}")
    probe_head = has_probe_head(cfg)
    if not advice.fits_probe_head and probe_head and not given("head"):
        overrides.append("head=linear")
        probe_head = False
    if not advice.pretrained and not given("schedule"):
        overrides.append("schedule=all_at_once")
    if not advice.holds_out_images and probe_head and not given("probe"):
        overrides.append(f"probe.l2=[{L2_ONE_PER_CLASS:g}]")
    return overrides


def _compose(overrides: Sequence[str]) -> DictConfig:
    """The config with these overrides in place of the scenario, before all others of the command line."""
    return compose_again([*overrides, *_given()], with_hydra=True)


def _configs() -> dict[str, DictConfig]:
    """The config of each scenario that has all settings that the user gave."""
    configs = {}
    for name in SCENARIOS:
        try:
            configs[name] = _compose([f"scenario={name}"])
        except HydraException:
            continue
    return configs


def _requested(cfg: DictConfig) -> str:
    """The settings of training that were given, on the command line or by an experiment; empty: none."""
    if cfg.recipe == "lr_find":
        return "recipe=lr_find"
    if settings := given_for_training("backbone.reinit", SEARCH):
        return ", ".join(settings)
    if not given("experiment"):
        return ""
    plain, composed = compose_again([f"scenario={AUTO}"]), _compose([f"scenario={AUTO}"])  # `cfg` has values in place of its own `auto`
    for composition in (plain, composed):
        OmegaConf.update(composition, CLASS_WEIGHTS, None, merge=False, force_add=True)
    changed = any(OmegaConf.select(composed, name) != OmegaConf.select(plain, name) for name in OF_TRAINING)
    return ", ".join(given("experiment")) if changed else ""


def _changes_length() -> bool:
    return bool(given(*MAY_CHANGE_LENGTH)) or any(word.lstrip("+~").startswith("trainer.") for word in _given())


def _given() -> list[str]:
    return [word for word in task_overrides() if not word.startswith("scenario=")]
