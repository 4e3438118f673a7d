"""Examine what a schedule will do to a module: the plan, with warnings of likely mistakes (the doctor)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import ceil
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.optim import Optimizer

from ftlit.data.input_spec import InputSpec
from ftlit.errors import shorten
from ftlit.finetuning.freeze import has_trained, says_pretrained, trained, unfrozen_warnings
from ftlit.finetuning.frozen_layers import EMBEDDINGS
from ftlit.finetuning.hints import IN_PYTHON, Hints
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.param_groups import (
    NO_DECAY,
    check_same_factors,
    group_warnings,
    lost_ratios,
    optimizer_of,
    parts_of,
    rates_of_parameters,
)
from ftlit.finetuning.plan import LayerRow, Plan, check_stage_factors, default_layers, lowest_first, policy_of, row_of
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage, begins_reduced
from ftlit.finetuning.train_entries import part_of, pattern_of
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.models.lora import check_lora
from ftlit.patterns import covers, names_of, not_covered
from ftlit.plain_arguments import plain_arguments

# Steps that a head with random weights needs. Measured: linear and mlp heads on pooled features of glyph, batches of 32, AdamW at 1e-3 and
# 1e-2, 3 seeds. Of the accuracy after 800 steps, 21, 50, 100 and 200 steps reach on average: digits .80, .92, .98, .99; sign_digits .50,
# .69, .83, .92. Checked on hymenoptera: .92, .99, 1.01, 1.01.
HEAD_STEPS = 100


@plain_arguments
def examine(
    module: nn.Module,
    schedule: Schedule,
    optimizer: Optimizer | Mapping[str, Any] | Sequence[Any],
    layers: str | Sequence[str] | None = None,
    *,
    batch_size: int | None = None,
    processes: int = 1,
    steps: int | None = None,
    max_epochs: int | None = None,
    validations: float = 1.0,
    fits_head: bool = False,
    may_fit_head: bool | None = None,
    hints: Hints = IN_PYTHON,
) -> Plan:
    """Examine what `schedule` will do to `module`, without changing it; `print` shows the plan.

    Args:
        module: the module that is trained.
        schedule: its patterns name parameters of `module`.
        optimizer: the optimizer before the first step (see `ftlit.build_optimizer`), or what `configure_optimizers` returns, with one;
            rates are those before the factor of a scheduler, except for the `stage_factors` of a `ftlit.Rates` in it.
        layers: names of modules, lowest first or top first; each becomes a row. Modules that they leave out are in `Plan.without_row`.
            `None`: the layers of each `Backbone`, and the children of the module and of the child with most of its parameters; the modules
            within these that stages and optimizer groups name, with those beside them; and parameters beside any of these.
        batch_size: batch size of one process, if known.
        processes: number of processes that train together.
        steps: optimizer steps of the whole training, if known.
        max_epochs: epochs of the whole training, if known.
        validations: number of validations in an epoch.
        fits_head: whether the head starts as a fitted linear probe, or otherwise trained, not from random weights. An `nn.Linear` whose
            attribute `origin` says so, as that of `Probe.as_head`, or that `StagedFinetuning` has trained before, needs no `fits_head` at
            the end of the top layer.
        may_fit_head: whether it could, with this data and strategy; `None`: if the module has a `Backbone`.
        hints: what to type, for the warnings.

    Raises:
        UserError: a pattern that covers nothing, a layer that the module lacks, no optimizer or several, one whose learning-rate factors
            are not those of the schedule, LoRA matrices that are not, a stage that training with `max_epochs` never reaches.
    """
    if max_epochs is not None:
        per_epoch = None if steps is None else ceil(steps / max(max_epochs, 1))
        schedule.check_reached(max_epochs, -1 if steps is None else steps, per_epoch)
    scheduler = next(iter(parts_of(optimizer, Rates)), None)
    factors = scheduler.stage_factors if scheduler else ()
    check_stage_factors(factors, len(schedule.stages))
    optimizer = optimizer_of(optimizer)
    check_same_factors(module, schedule.lr_scale, optimizer.param_groups)
    check_lora(module, schedule.lora)
    named = [pattern_of(entry) for stage in schedule.stages for entry in stage.entries]
    named += [str(group.get("name", "*")).removesuffix(NO_DECAY) for group in optimizer.param_groups]
    layers = default_layers(module, named) if layers is None else lowest_first(module, names_of(layers))
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    chosen = [trained(module, stage.train, stage.policy) & sizes.keys() for stage in schedule.stages]
    rates, foreign = rates_of_parameters(module, optimizer)
    rows = tuple(row_of(module, layer, schedule.stages, chosen, rates, factors) for layer in layers)
    head = _head(module, rows)
    last = None if head is None else _last_with_parameters(module.get_submodule(head.layer))
    fits_head = fits_head or (last is not None and (says_pretrained(last) or has_trained(last)))
    may_fit = any(isinstance(part, Backbone) for part in module.modules()) if may_fit_head is None else may_fit_head
    bytes_of = {name: p.numel() * p.element_size() for name, p in module.named_parameters()}
    warnings = [
        *group_warnings(rates, set().union(*chosen), foreign=foreign),
        *_never([row for row in rows if row.layer not in schedule.frozen], schedule.stages),
        *unfrozen_warnings(module, [(stage.name, own) for stage, own in zip(schedule.stages, chosen, strict=True)]),
        *([] if fits_head else _late_head(head, rows, schedule.stages)),
        *filter(None, [lost_ratios(optimizer)]),
        *schedule.condition_warnings(hints.begin, max_epochs, validations),
        *([] if scheduler is None else begins_reduced(schedule.stages, scheduler, validations, hints.restart)),
        *_under_frozen(rows, schedule.frozen, hints),
        *_pooler(rows, hints),
        *_small_batches(module, schedule.stages, chosen, batch_size, processes, hints),
        *_inputs(module, hints),
        *_random(module, chosen, hints),
        *([] if fits_head else _few_steps(steps, hints, may_fit)),
    ]
    return Plan(
        tuple(_line(stage, names_in, sizes) for stage, names_in in zip(schedule.stages, chosen, strict=True)),
        rows,
        tuple(sum(bytes_of[name] for name in names_in) for names_in in chosen),
        tuple(warnings),
        steps,
        type(optimizer).__name__,
        tuple(sorted({float(group["weight_decay"]) for group in optimizer.param_groups if "weight_decay" in group})),
        tuple(not_covered(layers, sizes)),
    )


def _line(stage: Stage, chosen: set[str], sizes: Mapping[str, int]) -> str:
    best = ", from the best weights of the previous stage" if stage.from_best else ""
    return f"{stage.begins}: {stage.name}{best}; {sum(sizes[name] for name in chosen):,} of {sum(sizes.values()):,} parameters train"


def _lacks_part(layer: str, stages: Sequence[Stage]) -> bool:
    """Whether a stage names the layer for a part that it lacks if it never trains: a batch norm has no LoRA matrices."""
    return any(part_of(entry) != "all" and covers(pattern_of(entry), layer) for stage in stages for entry in stage.entries)


def _never(rows: Sequence[LayerRow], stages: Sequence[Stage]) -> Iterable[str]:
    """Warn of layers that no stage trains although layers below them train, which is rarely intended."""
    ever = [row.first is not None or not row.size or _lacks_part(row.layer, stages) for row in rows]
    lowest = ever.index(True) if True in ever else 0
    if skipped := [row.layer for row, trains in [*zip(rows, ever, strict=True)][lowest:] if not trains]:
        yield f"no stage trains {shorten(skipped)}, although lower layers train: is a name missing in `train` of a stage?"


def _head(module: nn.Module, rows: Sequence[LayerRow]) -> LayerRow | None:
    """The top row, if it ends in a linear layer and is no layer of a `Backbone`."""
    top = next((row for row in reversed(rows) if row.size), None)
    if top is None or _in_backbone(module, top.layer) or top.layer in dict(module.named_parameters()):
        return None
    return top if isinstance(_last_with_parameters(module.get_submodule(top.layer)), nn.Linear) else None


def _late_head(head: LayerRow | None, rows: Sequence[LayerRow], stages: Sequence[Stage]) -> Iterable[str]:
    """Warn of stages that train layers below a head before it has trained: they adapt to its random weights."""
    if head is None or not head.first:
        return
    early = [(stage, [row.layer for row in rows if row.training[index]]) for index, stage in enumerate(stages[: head.first])]
    if stage := next(((stage, layers) for stage, layers in early if layers), None):
        yield (
            f"stage {stage[0].name!r} trains {shorten(stage[1])} before {head.layer} trains, so these layers adapt to the random weights "
            f"of the head: train {head.layer} in this stage or before it, unless its weights are pretrained"
        )


def _in_backbone(module: nn.Module, layer: str) -> bool:
    return any(isinstance(part, Backbone) and (not name or layer.startswith(f"{name}.")) for name, part in module.named_modules())


def _last_with_parameters(part: nn.Module) -> nn.Module:
    """The last module within this one that has parameters of its own; `part` has some."""
    return [leaf for leaf in part.modules() if any(True for _ in leaf.parameters(recurse=False))][-1]


def _under_frozen(rows: Sequence[LayerRow], frozen: Collection[str], hints: Hints) -> Iterable[str]:
    """Warn of layers that train below frozen ones: freezing saves the backward pass only if nothing below trains."""
    highest = max((place for place, row in enumerate(rows) if row.layer in frozen), default=0)
    if low := [row.layer for row in rows[:highest] if row.first is not None]:
        hint = f"; to freeze the embeddings too, give {hints.freeze_embeddings}" if low[0].endswith(EMBEDDINGS) else ""
        yield f"layers below the frozen layers train ({shorten(low)}), so the backward pass runs through the frozen layers too{hint}"


def _pooler(rows: Sequence[LayerRow], hints: Hints) -> Iterable[str]:
    """Warn of a frozen pooler: it was trained for the pretraining task, such as next sentences, or not at all."""
    for row in rows:
        if row.layer.rpartition(".")[2] == "pooler" and row.size and row.first is None:
            yield (
                f"{row.layer} is frozen in every stage, so it cannot adapt to the data; the mean of the tokens that go into it usually "
                f"gives better features: give {hints.without_pooler}"
            )


def _inputs(module: nn.Module, hints: Hints) -> Iterable[str]:
    """Warn of a normalisation other than that of the pretraining: it costs accuracy without an error."""
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        spec, trained_with = backbone.input_spec, backbone.trained_with
        if not trained_with or not isinstance(spec, InputSpec) or spec.channels != trained_with.channels:
            continue
        if (spec.mean, spec.std) != (trained_with.mean, trained_with.std):
            given, meant = (f"mean {s.mean} std {s.std}" for s in (spec, trained_with))
            yield f"images are normalised with {given}, but the weights were trained with {meant}: check {hints.input_spec}"


def _random(module: nn.Module, chosen: Sequence[set[str]], hints: Hints) -> Iterable[str]:
    """Warn of layers with random weights that no stage trains."""
    ever = set().union(*chosen)
    for name, backbone in module.named_modules():
        if isinstance(backbone, Backbone):
            prefix = f"{name}." if name else ""
            random = [layer for layer in backbone.layers_with_parameters if layer in backbone.random_layers]
            if layers := [layer for layer in random if not any(covers(prefix + layer, parameter) for parameter in ever)]:
                has = "although these layers have random weights"
                yield f"no stage trains {shorten(layers)}, {has}: load weights ({hints.weights}), or train these layers"


def _few_steps(steps: int | None, hints: Hints, may_fit: bool) -> Iterable[str]:
    """Warn of a head with random weights that training ends too early for."""
    if steps is not None and steps < HEAD_STEPS:
        given = f"the head starts from random weights and gets only {count(steps, 'optimizer step')}, but usually needs {HEAD_STEPS}"
        fitted = f"use smaller batches, or begin with a fitted head ({hints.fitted_head})" if may_fit else "or use smaller batches"
        yield f"{given}: train longer, {fitted}{hints.trained_before}"


def _small_batches(
    module: nn.Module, stages: Sequence[Stage], chosen: Sequence[set[str]], batch_size: int | None, processes: int, hints: Hints
) -> Iterable[str]:
    """Warn of live batch norms on small batches, whose statistics are noisy, and with several processes, which have different ones."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    if not norms:
        return
    if not any("live" in policy_of(module, stage, names, norms) for stage, names in zip(stages, chosen, strict=True)):
        return
    if batch_size is not None and batch_size < 8:
        yield (f"batch norms use the statistics of each batch, which are noisy with {count(batch_size, 'image')}: use {hints.batchnorm}")
    if processes > 1 and not all(isinstance(norm, SyncBatchNorm) for norm in norms):
        yield (
            f"each of the {processes} processes computes its own statistics for batch norms, but only those of process 0 are saved: "
            f"use {hints.sync_batchnorm} (GPUs only), {hints.batchnorm}"
        )
