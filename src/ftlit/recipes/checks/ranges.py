"""The range of every numeric option of the config, in one table."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ftlit.data.limits import MAX_VALUE
from ftlit.errors import UserError
from ftlit.recipes.checks.value_types import several_values

LARGEST_SEED = 2**32 - 1  # numpy's
MANY = 10**9
WIDEST = 2**14  # units of a layer; a head of larger ones does not fit into memory


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`.

    Args:
        least: the smallest number.
        most: the largest one.
        whole: whether the numbers are whole.
        open: ends that do not belong to it: `least`, `most`, or both in `both`.
        minus_one: what -1 stands for; empty: it is not accepted.
        hint: what to do instead of a number outside, for the error.
    """

    least: float
    most: float
    whole: bool = False
    open: str = ""
    minus_one: str = ""
    hint: str = ""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if self.minus_one and value == -1:
            return True
        above = value > self.least if self.open in ("least", "both") else value >= self.least
        return above and (value < self.most if self.open in ("most", "both") else value <= self.most)

    def describe(self) -> str:
        """The numbers, in words.

        >>> Range(0, 1, open="most").describe()
        'a number of at least 0 and below 1'
        >>> Range(1, 10**6, whole=True, minus_one="no limit").describe()
        'a whole number from 1 to 1000000, or -1 (no limit)'
        """
        least, most = f"{self.least:.15g}", f"{self.most:.15g}"
        begin = f"above {least}" if self.open in ("least", "both") else f"of at least {least}"
        end = f"below {most}" if self.open in ("most", "both") else f"at most {most}"
        limits = f"{begin} and {end}" if self.open else f"from {least} to {most}"
        return f"a {'whole ' if self.whole else ''}number {limits}{f', or -1 ({self.minus_one})' if self.minus_one else ''}"


COUNT = Range(1, MANY, whole=True)
COUNT_OR_NONE = Range(0, MANY, whole=True)
LENGTH = Range(1, MANY, whole=True, minus_one="no limit")
SEED = Range(0, LARGEST_SEED, whole=True)
SHARE = Range(0, 1, open="both")
NEEDS_SPLITS = ", such as 0.05: every run needs val and test examples (leave the option out where the data give them)"
FRACTION = Range(0, 1, open="most")
FACTOR = Range(0, 1000, open="least")
RATE = Range(0, 1000, open="least")
PENALTY = Range(0, 1000)
BATCH = Range(1, 2**20, whole=True)
PIXELS = Range(1, 2**12, whole=True)
WIDTH = Range(1, WIDEST, whole=True)

AUTO = "auto"
# settings of which `auto` depends on the hardware or the plan, and their values in runs of earlier releases, which had no `auto`
HARDWARE_SETTINGS = {"trainer.precision": "32-true", "float32": "highest", "optimizer.fused": None, "cache.pixels": False}
RESOLVED_SETTINGS = {**HARDWARE_SETTINGS, "checkpoint": "full", "compile": False}  # in which `auto` is replaced when a run begins
OF_TRAIN_YAML = ("seed", "rank_timeout")  # no signature says that they are numbers
NO_WORDS = (  # options for which a word is refused before PyTorch, whose signatures say so too, is loaded
    *("trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.accumulate_grad_batches"),
    *("data.batch_size", "data.per_class", "data.val_fraction", "data.test_fraction", "data.split_seed"),
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum"),
)
RANGES: dict[str, Range] = {  # patterns of full names; the first match counts
    "seed": SEED,
    "*.seed": SEED,
    "rank_timeout": Range(0, 7 * 24 * 60, open="least"),  # minutes
    "backbone.in_chans": Range(1, 10**4, whole=True),
    "average.decay": FRACTION,
    "average.alphas*": Range(0, 1),
    "backbone.input_spec.size": PIXELS,
    "backbone.input_spec.resize": PIXELS,
    "backbone.input_spec.mean": Range(-MAX_VALUE, MAX_VALUE),
    "backbone.input_spec.std": Range(0, MAX_VALUE, open="least"),
    "backbone.input_spec.grey_range": Range(-MAX_VALUE, MAX_VALUE),
    "backbone.hidden": WIDTH,
    "backbone.max_length": Range(3, 2**16, whole=True),
    "backbone.width_mult": Range(0, 100, open="least"),
    "backbone.cut": Range(-1000, 1000, whole=True),
    "backbone.reinit": Range(-1000, 1000, whole=True),
    "cache.max_gb": Range(0, 10**6),
    "callbacks.last.every_n_steps": COUNT_OR_NONE,
    "callbacks.last.every_seconds": Range(0, 7 * 24 * 3600),
    "callbacks.best.every_n_epochs": COUNT,
    "data.*_fraction": Range(0, 1, open="both", hint=NEEDS_SPLITS),
    "data.split_seed": SEED,
    "data.batch_size": BATCH,
    "data.batches": Range(1, 10**6, whole=True),
    "data.num_workers": Range(0, 1024, whole=True),
    "data.per_class": COUNT,
    "data.views": Range(0, 1000, whole=True),
    "head.channels": WIDTH,
    "head.cuts[[]*": Range(-1000, 1000, whole=True),
    "head.cuts": Range(1, 1000, whole=True),
    "head.hidden": WIDTH,
    "head.dropout": FRACTION,
    "loss.class_weights*": Range(0, 1e6, open="least"),
    "loss.label_smoothing": FRACTION,
    "lr_find.least": RATE,
    "lr_find.most": RATE,
    "lr_find.steps": Range(10, 10**6, whole=True),
    "lr_find.stage": Range(-1000, 1000, whole=True),
    "lr_scheduler.stage_factors*": FACTOR,
    "lr_scheduler.warmup": FRACTION,
    "lr_scheduler.curve.factor": SHARE,
    "lr_scheduler.curve.gamma": Range(0, 10, open="least"),
    "lr_scheduler.curve.least": RATE,
    "lr_scheduler.curve.most": RATE,
    "lr_scheduler.curve.patience": COUNT_OR_NONE,
    "lr_scheduler.curve.step_size": COUNT,
    "optimizer.lr": RATE,
    "optimizer.momentum": FRACTION,
    "optimizer.weight_decay": PENALTY,
    "pretrain.epochs": COUNT,
    "pretrain.k": Range(1, 10**4, whole=True),
    "pretrain.noise": FRACTION,
    "pretrain.optimizer.lr": RATE,
    "pretrain.optimizer.momentum": FRACTION,
    "pretrain.optimizer.weight_decay": PENALTY,
    "probe.l2": Range(0, 1e12, open="least"),
    "probe.rows": COUNT,
    "probe.repeats": Range(1, 10**4, whole=True),
    "schedule.epoch": COUNT_OR_NONE,
    "sweep.halving.first": COUNT,
    "sweep.halving.eta": Range(1, MANY, open="least"),
    "sweep.halving.reduction": Range(1, MANY, open="least"),
    "schedule.every": COUNT,
    "schedule.k": Range(1, 1000, whole=True),
    "schedule.rank": Range(1, 1024, whole=True),
    "schedule.scale": FACTOR,
    "schedule.decay": Range(0, 10, open="least"),
    "schedule.lr_scale.*": Range(0, 1000),
    "trainer.accumulate_grad_batches": Range(1, 10**6, whole=True),
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.devices[[]*": Range(0, 4095, whole=True),
    "trainer.devices": Range(1, 4096, whole=True, minus_one="all devices"),
    "trainer.gradient_clip_val": Range(0, 1e12),
    "trainer.limit_*_batches": Range(0, MANY, open="least"),
    "trainer.log_every_n_steps": COUNT_OR_NONE,
    "trainer.max_epochs": LENGTH,
    "trainer.max_steps": LENGTH,
    "trainer.max_time.*": COUNT_OR_NONE,
    "trainer.min_epochs": COUNT_OR_NONE,
    "trainer.min_steps": COUNT_OR_NONE,
    "trainer.num_nodes": Range(1, 4096, whole=True),
    "trainer.num_sanity_val_steps": Range(0, MANY, whole=True, minus_one="all batches"),
    "trainer.val_check_interval": Range(0, MANY, open="least"),
}


def range_of(name: str) -> Range | None:
    """The range of an option by its full name, `head.hidden[0]` for an element of a list; `None` for one that is not in the table."""
    names = (name, name.partition("[")[0])
    return next((found for pattern, found in RANGES.items() if any(fnmatchcase(each, pattern) for each in names)), None)


def check_ranges(cfg: DictConfig) -> None:
    """Raise `UserError` for a number outside of the range of its option, for nan and inf in any option, and for a word in `NO_WORDS`."""
    words = [(name, value) for name in NO_WORDS if isinstance(value := OmegaConf.select(cfg, name, throw_on_missing=False), str)]
    for name, value in [*((name, cfg[name]) for name in OF_TRAIN_YAML), *words, *numbers_in(cfg)]:
        allowed = range_of(name)
        if allowed is not None and value not in allowed:
            percent = isinstance(value, int | float) and allowed.most == 1 < value <= 100
            hint = f" ({value:g} % is {value / 100:g})" if percent and not allowed.whole else allowed.hint
            raise UserError(f"{name}={value!r}: give {allowed.describe()}{hint}{several_values(name, value)}")
        if not isfinite(value):
            raise UserError(f"{name}={value}: give a finite number")


def numbers_in(node: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Full name and value of each number in a config, except those behind interpolations and Hydra's own."""
    if isinstance(node, DictConfig):
        for key in node:
            leaf = str(key)
            interpolated = OmegaConf.is_interpolation(node, key)  # type: ignore[arg-type]
            if (name or leaf != "hydra") and not OmegaConf.is_missing(node, key) and not interpolated:
                yield from numbers_in(node[key], f"{name}.{leaf}" if name else leaf)
    elif isinstance(node, ListConfig):
        for i, part in enumerate(node):
            yield from numbers_in(part, f"{name}[{i}]")
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield name, node
