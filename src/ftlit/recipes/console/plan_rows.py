"""The plan of a run, as rows of text."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from ftlit.errors import shorten
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.plan import Plan
from ftlit.formatting import count, shown_folder, size_in_words, three_digits
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.features.feature_data import FeatureData
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import pooled_size
from ftlit.printing import plain, show
from ftlit.recipes.config.candidates import choice_of_run
from ftlit.recipes.config.class_weights import class_weights_text
from ftlit.recipes.config.hydra_internals import choices
from ftlit.recipes.config.overrides import chosen_part, given, ignored_without_training, replaced
from ftlit.recipes.console.commands import resume_command
from ftlit.recipes.console.layers_table import layers_table
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.console.training_row import (
    class_weight_note,
    estimate_text,
    few_of_class_note,
    few_test_note,
    few_val_note,
    training_text,
    unread_views,
)

PlanRow = tuple[str, str]  # name and text of a row of the plan

COLUMN_OPTIONS = ("path_column", "image_column", "text_column", "label_column")  # of the data
START = {"blend": "its part of the last cut", "average": "its part of the last cut", "concat": "a linear probe of the last cut"}
PLAN_GROUPS = ("scenario", "experiment", "backbone", "head", "loss", "data", "schedule", "optimizer", "lr_scheduler", "cache", "trainer")


def plan_rows(
    cfg: DictConfig, backbone: Backbone, data: Any, plan: Plan, stage_inputs: Sequence[StageInput], facts: RunFacts
) -> list[PlanRow]:
    """The plan of a run: weights, input, data, how the head is fitted, what trains when, on which device, for how long.

    Args:
        cfg: the composed config.
        backbone: of the run.
        data: of the run.
        plan: of the schedule.
        stage_inputs: the input of each stage, where features are stored; else empty.
        facts: see `RunFacts`.
    """
    spec = data.input_spec if isinstance(data, ImageData | FeatureData) else backbone.input_spec
    rows = first_rows(cfg, backbone, spec.summary, PLAN_GROUPS)
    rows.append(("features", _features_text(cfg, backbone, spec.shape, facts.head_cuts)))
    rows += data_rows(cfg, data, spec.noun)
    rows += [("note", note) for note in class_weight_note(cfg, data, spec.noun)]
    rows += [("note", note) for note in unread_views(cfg, data, stage_inputs, facts)]
    if facts.trains:
        rows += [("note", note) for note in few_val_note(cfg, data, plan, spec.noun)]
    if facts.fits_head:
        rows.append(("head", _head_text(cfg, data, spec.noun, facts)))
    if facts.trains:
        rows.append(("training", training_text(cfg, data, plan, facts, stage_inputs, spec.noun)))
        rows += _stage_rows(plan, stage_inputs, facts, spec.noun)
        rows += _average_rows(cfg)
    if stage_inputs and (facts.trains or facts.head_bytes):
        rows.append(("cache", _cache_text(data, stage_inputs if facts.trains else (), facts.head_bytes)))
    rows.append(("device", facts.devices))
    if facts.memory:
        rows.append(("memory", facts.memory.describe(facts.processes)))
    if cfg.compile and facts.trains:
        rows.append(
            ("compile", "each layer and the head; the first steps of a stage take longer, as its changed layers are compiled again")
        )
    if cfg.checkpoint == "slim":
        rows.append(("saved", "only the weights that differ from the pretrained ones (checkpoint=slim)"))
    epochs = _epochs_text(cfg.trainer.max_epochs) if facts.trains else "no training epochs"
    epochs += "" if plan.steps is None else f", {count(plan.steps, 'optimizer step')}"
    rows.append(("run", f"{epochs}, seed {cfg.seed}, folder {cfg.paths.run}"))
    if facts.seconds is not None:
        rows.append(("estimate", estimate_text(cfg, plan, facts.seconds, facts)))
    return rows


def first_rows(cfg: DictConfig, backbone: Backbone, input_summary: str, groups: Sequence[str]) -> list[PlanRow]:
    """The chosen options of these config groups, what they replace, the backbone and its input."""
    chosen = choices()
    rows = [("ftlit", ", ".join(chosen_part(group, chosen[group]) for group in groups if chosen.get(group)))]
    rows += [("note", line) for line in replaced(cfg)]
    return [*rows, ("backbone", _backbone_text(cfg, backbone)), ("input", input_summary)]


def _epochs_text(number: int | None) -> str:
    return "no limit of epochs" if number in (None, -1) else count(number, "epoch")


def _stage_rows(plan: Plan, stage_inputs: Sequence[StageInput], facts: RunFacts, noun: str) -> list[PlanRow]:
    rows, verb = [], "fsdp2 reduce-scatters" if facts.shards else "ddp all-reduces"
    for i, (line, size) in enumerate(zip(plan.stages, plan.reduced, strict=True)):
        reduces = f"{verb} {size_in_words(size)} of gradients per step; " if facts.processes > 1 else ""
        rows.append((f"stage {i}", f"{line}; {reduces}reads {stage_inputs[i].reason if stage_inputs else noun}"))
    return rows


def _average_rows(cfg: DictConfig) -> list[PlanRow]:
    """Which averaged weights are the result of the run."""
    if "decay" in cfg.average:
        text = f"exponential moving average of the weights (decay up to {cfg.average.decay:g}); val and test are of the average"
    elif "alphas" in cfg.average:
        alphas = ", ".join(f"{alpha:g}" for alpha in sorted({0.0, *cfg.average.alphas, 1.0}))
        ends = "between the fitted start (alpha 0) and the best epoch (alpha 1)"
        text = f"after training, the weights are interpolated {ends}; alpha is chosen on val among {alphas}"
    else:
        return []
    return [("average", text)]


def data_rows(cfg: DictConfig, data: Any, noun: str) -> list[PlanRow]:
    """Sizes of the splits and of the classes, the columns that are read, and notes on the data, also on a small test split."""
    splits = "; ".join(f"{split} {sum(counts.values()):,}" for split, counts in data.counts.items())
    names = [str(cfg.data[option]) for option in COLUMN_OPTIONS if cfg.data.get(option) is not None]
    columns = f"; column{'s' if len(names) > 1 else ''} {' and '.join(names)}" if names else ""
    return [
        ("data", f"{splits} {noun} of {data.num_classes} classes{columns}"),
        ("classes", shorten((f"{name}: {number:,}" for name, number in data.counts["train"].items()), most=12)),
        *(("note", note) for note in [*getattr(data, "notes", ()), *few_test_note(data, noun), *few_of_class_note(data, noun)]),
    ]


def _backbone_text(cfg: DictConfig, backbone: Backbone) -> str:
    size = sum(parameter.numel() for parameter in backbone.parameters())
    name = cfg.backbone.get("name", cfg.backbone._target_)
    text = f"{name}: {shorten(backbone.cuts)}; {size:,} parameters; weights: {backbone.origin.describe()}"
    text += f"; reinitialized: {shorten(backbone.reinit)}" if backbone.reinit else ""
    return f"{text}{_choice_text(cfg)}"


def _choice_text(cfg: DictConfig) -> str:
    """How `backbone=auto` chose the backbone."""
    if (choice := choice_of_run(cfg.paths.run)) is None:
        return ""
    own = next(row for row in choice["candidates"] if row["name"] == choice["chosen"])
    accuracy, speed = "{accuracy:.3f} ± {standard_error:.3f}".format(**own), three_digits(own["images_per_second"])
    return f"; chosen among {len(choice['candidates'])} (held-out accuracy {accuracy}, {speed} {choice['noun']} per second)"


def _features_text(cfg: DictConfig, backbone: Backbone, input_shape: Sequence[int], cuts: Sequence[str]) -> str:
    shapes, head = {cut: shape for cut, (shape, _) in backbone.on_meta(input_shape).items()}, cfg.head._target_.rpartition(".")[2]
    pooled = f", pooled by {pooling}" if (pooling := cfg.backbone.get("pooling")) else ""
    if cuts:
        width = sum(pooled_size(shapes[cut], backbone.token_pool) for cut in cuts)
        return f"at the cuts {', '.join(cuts)}{pooled}, {width} features for the head ({head})"
    shape = "x".join(map(str, shapes[backbone.cuts[-1]]))
    return f"{shape} at cut {backbone.cuts[-1]}{pooled}, {backbone.num_features} features for the head ({head})"


def _head_text(cfg: DictConfig, data: Any, noun: str, facts: RunFacts) -> str:
    l2_penalties: Sequence[float] = OmegaConf.select(cfg, "probe.l2") or []
    l2 = f"L2 penalty {l2_penalties[0]:g}" if len(l2_penalties) == 1 else "L2 penalty chosen by cross-validation"
    auto = "" if cfg.get("init_from") is None or given("data.views") else "data.views=auto: the more images, the fewer views; "
    views = f"and {count(facts.views, 'augmented view')} of each ({auto}data.views=0: none)" if facts.views else "without augmentation"
    several = {"concat": "", "blend": ", the mean of two: of the last cut and of all cuts", "average": ", the mean of one for each cut"}
    weights = "".join(f", with {text}" for text in class_weights_text(cfg, data))
    of_cuts = several[cfg.head.combine] if facts.fitted_cuts else ""
    cuts = f" at the cuts {', '.join(facts.fitted_cuts)}" if facts.has_baseline and facts.fitted_cuts else ""
    text = f"linear probe{of_cuts}, fitted on features{cuts} of {_fitted_images(data, facts, noun)} {views}{weights}; {l2}."
    if cfg.data.get("per_class") is not None and (facts.has_baseline or not facts.trains):
        text += f" It is not refitted on train + val, because data.per_class={cfg.data.per_class} limits the training {noun}."
    if facts.trains:
        begin = given("schedule.epoch", "schedule.until")
        unused = f", so {' and '.join(begin)} {_is(begin)} ignored" if begin else ""
        if facts.has_baseline:
            part = "it" if not facts.fitted_cuts or facts.head_cuts else START[cfg.head.combine]
            competes = (
                ", and it is the result of the run unless an epoch is better on val by more than a standard error"
                if facts.baseline_competes
                else ""
            )
            text += f" It is evaluated before training{competes}. Training starts from {facts.start_head or part}."
        return f"{text} Stages that train only the head are skipped{unused}; to keep these stages, give head=linear."
    if facts.refits_on_val:
        text += " After validation the head is refitted on train + val; the test score is for the refitted head."
    unread = ignored_without_training(augmented=bool(facts.views))
    ignored = ", ".join(unread) or f"optimizer, lr_scheduler{'' if weights else ', loss (apart from class_weights)'} and epochs"
    printed = " The printed loss is that of loss.*." if any(name.startswith("loss") for name in unread) else ""
    instead = "To train the head by gradient descent, give head=linear; to train all layers, give scenario=large_similar."
    return f"{text} There is no gradient training, so {ignored} {_is(unread)} ignored.{printed} {instead}"


def _fitted_images(data: Any, facts: RunFacts, noun: str) -> str:
    """Which training images a head is fitted on."""
    every = sum(data.counts["train"].values())
    if not facts.fitted_images or facts.fitted_images >= every:
        return f"the training {noun}"
    more = "" if facts.trains else " (for all, give probe.rows=all)"
    return f"{facts.fitted_images:,} of the {every:,} training {noun}{more}, the same share of each class,"


def _is(words: Sequence[str]) -> str:
    return "is" if len(words) == 1 else "are"


def _cache_text(data: Any, stage_inputs: Sequence[StageInput], head_bytes: int) -> str:
    """Where features, also those of a fitted head, are stored, and their size at most."""
    size = sum({source.specs: source.bytes for source in stage_inputs}.values()) + head_bytes
    if not size:
        return "no stage trains on features"
    kinds = {"pixels" if source.pixels else "features" for source in stage_inputs if source.bytes} | ({"features"} if head_bytes else set())
    return f"{' and '.join(sorted(kinds))} take up to {size_in_words(size)} in {shown_folder(data.store.folder)}"


def print_plan(cfg: DictConfig, rows: Sequence[PlanRow], plan: Plan, resuming: str, *, trains: bool = True) -> None:
    """Print the rows of the plan, the command that resumes the run, what trains when at which rate, and the doctor's warnings.

    Args:
        cfg: of the run.
        rows: see `plan_rows`.
        plan: of the schedule.
        resuming: from where the run resumes; empty for a new one.
        trains: whether there is any gradient training.
    """
    print_rows(rows)
    resume = f"resuming from {resuming}" if resuming else resume_command(cfg)
    show(f"[bold]resume[/bold]    {plain(resume)}")  # in one line, to be copied
    if trains:
        show(layers_table(plan))
    for warning in plan.warnings:
        show(f"[bold]doctor[/bold]    {plain(warning)}")


def print_rows(rows: Sequence[PlanRow]) -> None:
    """Print rows of a plan in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, text in rows:
        table.add_row(f"[bold]{name}[/bold]", plain(text.replace("\n", "\\n")))
    show(table)
