"""Facts of a run for its plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftlit.finetuning.lr_schedule import Rates
from ftlit.lit.sharding.memory import ProcessMemory


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run for its plan, beyond schedule and data.

    Args:
        devices: description of the devices and the number format.
        fits_head: whether the head is fitted as a linear probe.
        has_baseline: whether a linear probe is evaluated before training; the facts of a fitted head are then its own.
        baseline_competes: whether it is the result of the run unless an epoch is clearly better.
        head_cuts: the cuts that the head reads, if these are several.
        fitted_cuts: the cuts that the fitted head reads, if these are several.
        fitted_images: number of training images that it is fitted on.
        views: augmented views that a fitted head is fitted on besides the plain one.
        head_bytes: size of the stored features that it is fitted on.
        start_head: what training starts from, where it is the head of an earlier run; empty: the fitted head.
        refits_on_val: whether it is refitted on train + val.
        trains: whether there is any gradient training.
        processes: how many there are.
        steps_per_epoch: optimizer steps of an epoch, if known.
        rates: the learning rates over time, if known.
        shards: whether the weights are sharded.
        memory: what each process holds, if the weights are sharded, and the state of the optimizer is known.
        seconds: estimates for the whole run on this machine, and for the linear probe before training, if there are any.
    """

    devices: str
    fits_head: bool = False
    has_baseline: bool = False
    baseline_competes: bool = False
    head_cuts: Sequence[str] = ()
    fitted_cuts: Sequence[str] = ()
    fitted_images: int = 0
    views: int = 0
    head_bytes: int = 0
    start_head: str = ""
    refits_on_val: bool = False
    trains: bool = True
    processes: int = 1
    steps_per_epoch: int | None = None
    rates: Rates | None = None
    shards: bool = False
    memory: ProcessMemory | None = None
    seconds: tuple[float, float] | None = None
