"""The rows `training` and `estimate` of the plan, and notes on few images: of a class, for the choice of the epoch, for the test."""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from ftlit.errors import shorten
from ftlit.features.stage_input import StageInput
from ftlit.finetuning.lr_schedule import Rates
from ftlit.finetuning.plan import Plan
from ftlit.formatting import count, duration_in_words, size_in_words
from ftlit.intervals import accuracy_interval
from ftlit.probes.fitted_head.view_effect import ViewEffect
from ftlit.recipes.config.class_weights import class_weights_text
from ftlit.recipes.console.run_facts import RunFacts

IMBALANCE = 4  # times as many training images as the smallest class has
FEW_VAL = 30  # images: the 95 % interval of an accuracy on fewer is wider than +/- 0.17
FEW_TEST = 100  # images: that of an accuracy of 0.9 on fewer is wider than +/- 0.06
FEW_OF_CLASS = 5  # images: that of a recall of 1 on fewer begins at 0.51 or below
INSTEAD = "to augment, give cache=none, or data.views=4 for a fixed number of versions"


def training_text(cfg: DictConfig, data: Any, plan: Plan, facts: RunFacts, stage_inputs: Sequence[StageInput], noun: str) -> str:
    """Optimizer, learning rate, weight decay, batches, augmentation; see `plan_rows` for the arguments."""
    rates = [rate for row in plan.rows if row.first is not None for rate in row.rates]
    parts = [f"{plan.optimizer}, learning rate up to {max(rates):g}" if rates else plan.optimizer]
    if plan.weight_decays:
        parts[0] += f", weight decay {plan.weight_decays[-1]:g}"
    parts[0] += "".join(f", {part}" for part in _rates_over_time(facts.rates))
    batches = f"batches of {data.batch_size} {noun}"
    batches += f" in each of {facts.processes} processes" if facts.processes > 1 else ""
    accumulated = cfg.trainer.get("accumulate_grad_batches") or 1
    batches += f", {accumulated} batches per optimizer step" if accumulated > 1 else ""
    parts.append(batches if facts.steps_per_epoch is None else f"{batches}, {count(facts.steps_per_epoch, 'optimizer step')} per epoch")
    parts += _augmentation(cfg.data.get("augment"), data, stage_inputs, noun)
    parts += class_weights_text(cfg, data)
    return "; ".join([*parts, *_monitors(cfg)])


def _augmentation(augment: object, data: Any, stage_inputs: Sequence[StageInput], noun: str) -> Iterator[str]:
    """Which stages train on augmented images: those that read features have a fixed number of versions, or none."""
    if not hasattr(data, "augments"):  # a data module of the user
        yield "augmentation as in your data module"
        return
    if augment == "none":
        yield "no augmentation"
        return
    if not isinstance(augment, str) and not (stage_inputs and data.augments):
        return
    name = f"augmentation {augment}" if isinstance(augment, str) else "augmentation"
    on_features = [stage for stage, stage_input in enumerate(stage_inputs) if stage_input.specs]
    if not on_features:
        yield name
    elif data.views:
        where = f" in {_stages(on_features)}" if len(on_features) < len(stage_inputs) else ""
        new = "for a newly drawn one in each epoch, give cache=none"
        yield f"{name}, {data.views} versions of each image{where}, one per epoch in turn ({new})"
    elif len(on_features) < len(stage_inputs):
        yield f"{name}, but not in {_stages(on_features)}, where features are stored ({INSTEAD})"
    else:
        yield f"{name} is not used, because no stage trains on {noun} ({INSTEAD})"


def _stages(numbers: Sequence[int]) -> str:
    return f"stage{'s' if len(numbers) > 1 else ''} {shorten(map(str, numbers))}"


def _rates_over_time(rates: Rates | None) -> Iterator[str]:
    """The warm-up, and the metric that the learning rate depends on."""
    if rates and rates.warmup:
        yield f"warm-up over the first {rates.warmup:.3g} of {'each stage' if rates.restarts else 'the run'}"
    if rates and rates.stage_factors:
        yield f"times {', '.join(f'{factor:g}' for factor in rates.stage_factors)} in stages 0 to {len(rates.stage_factors) - 1}"
    if rates and rates.reduce_on_plateau:
        yield f"reduced when {rates.monitor} stalls"


def _monitors(cfg: DictConfig) -> Iterator[str]:
    """The metric of each callback that has one, unless it is the usual one of the best epoch."""
    for name, callback in cfg.callbacks.items():
        monitor = callback.get("monitor") if callback else None
        if monitor and (name, monitor) != ("best", "val/accuracy"):
            yield f"{'best epoch' if name == 'best' else name} by {monitor}"


def unread_views(cfg: DictConfig, data: Any, stage_inputs: Sequence[StageInput], facts: RunFacts) -> Iterator[str]:
    """A note where augmented views are given, but neither a fitted head nor a stage reads features of them."""
    views, on_features = cfg.data.get("views"), facts.trains and any(stage_input.specs for stage_input in stage_inputs)
    if views in (None, "auto", 0) or facts.views or on_features or not getattr(data, "augments", False):  # those of ImageData note that
        return
    yield f"data.views={views} is ignored: no head is fitted as a linear probe, and no stage trains from stored features"


def harmful_augmentation_note(cfg: DictConfig, effect: ViewEffect | None) -> Iterator[str]:
    """A note where a probe of augmented images is clearly worse than one of plain images, before training begins."""
    if effect is None or not effect.is_worse:
        return
    name, instead = ("data.augment", "data.augment=none") if "augment" in cfg.data else ("augmentation", "ImageData(augment='none')")
    value = f"={given}" if isinstance(given := cfg.data.get("augment"), str) else ""
    yield (
        f"{name}{value} may make training less accurate here: on held-out images without augmentation, a linear probe has a loss of "
        f"{effect.augmented:.3f} if it is fitted on augmented images, and {effect.plain:.3f} if it is not (standard error of the "
        f"difference {effect.standard_error:.3f}); to train without augmentation, stop this run and type {instead}"
    )


def class_weight_note(cfg: DictConfig, data: Any, noun: str) -> Iterator[str]:
    """A note where a class has far fewer training images than another one and all images weigh the same, or where losses are weighted."""
    counts = {name: number for name, number in data.counts["train"].items() if number}
    if data.multilabel or len(counts) < 2 or "class_weights" not in cfg.loss:
        return
    if cfg.loss.class_weights is not None:
        yield "loss.class_weights weights the printed losses too: do not compare them with the losses of a run without these weights"
        return
    least, most = min(counts, key=counts.__getitem__), max(counts.values())
    if most >= IMBALANCE * counts[least]:
        is_probe = cfg.get("recipe") == "probe"  # it saves no network
        scores = "" if cfg.get("final") or is_probe else "look at its recall and at macro F1 too; "  # a final run has no scores
        prior = "" if is_probe else "use ftlit predict RUN ... --prior balanced after training, or "
        yield (
            f"class {least} has only {count(counts[least], f'training {noun[:-1]}')}, another one {most:,}: {scores}to give all classes "
            f"the same weight, {prior}set loss.class_weights=balanced"
        )


def few_val_note(cfg: DictConfig, data: Any, plan: Plan, noun: str) -> Iterator[str]:
    """A note where val is too small to choose an epoch well."""
    number = sum(data.counts["val"].values())
    if not 0 < number < FEW_VAL or data.multilabel or not cfg.callbacks.get("best"):
        return
    low, high = accuracy_interval(0.5, number)
    head_alone = all(row.layer == "head" for row in plan.rows if row.first is not None)
    probe = "; head=linear_probe needs no such choice" if head_alone else ""
    yield (
        f"val has only {count(number, noun.removesuffix('s'))}, which give an accuracy to within about {(high - low) / 2:.2f}, so the "
        f"choice of the best epoch is rough: give more {noun}, or callbacks.best=null to keep the weights of the last epoch{probe}"
    )


def few_test_note(data: Any, noun: str) -> Iterator[str]:
    """A note where test is too small for a precise accuracy: its 95 % interval, at an accuracy of 0.9."""
    number = sum(data.counts["test"].values())
    if not 0 < number < FEW_TEST or data.multilabel:
        return
    low, high = accuracy_interval(0.9, number)
    yield (
        f"test has only {count(number, noun.removesuffix('s'))}: the 95 % interval of a test accuracy of 0.90 is {high - low:.2f} wide "
        f"({low:.2f} to {high:.2f}), so a smaller difference may be chance; more test {noun} make it narrower"
    )


def few_of_class_note(data: Any, noun: str) -> Iterator[str]:
    """A note where test has too few images of some classes for their recall."""
    counts = data.counts["test"]
    few = [f"{name} ({counts[name]})" for name in sorted(counts, key=counts.__getitem__) if 0 < counts[name] < FEW_OF_CLASS]
    if few:
        yield (
            f"test has fewer than {FEW_OF_CLASS} {noun} of {shorten(few, most=5)}: the recall of such a class, and with it macro F1, may "
            f"be chance; more {noun} of it make them reliable"
        )


def estimate_text(cfg: DictConfig, plan: Plan, seconds: tuple[float, float], facts: RunFacts) -> str:
    """Time of the run, and size of its two checkpoints with two float32 values of an optimizer for each that trains."""
    whole, probe, training = map(duration_in_words, (*seconds, seconds[0] - seconds[1]))
    parts = f" (the linear probe before training {probe}, training {training})" if facts.has_baseline else ""
    text = f"about {whole}{parts}" + (", less where features are stored already" if cfg.cache.get("folder") else "")
    if not facts.trains:
        return text
    trained = sum(row.trained for row in plan.rows)
    stored = trained if cfg.checkpoint == "slim" else sum(row.size for row in plan.rows)
    return f"{text}; checkpoints take about {size_in_words(2 * 4 * (stored + 2 * trained))}"
