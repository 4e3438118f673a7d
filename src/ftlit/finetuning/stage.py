"""A stage: from when on what trains."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftlit.errors import UserError
from ftlit.finetuning.freeze import BatchNorm, check_batchnorm
from ftlit.finetuning.until import Until


@dataclass(frozen=True)
class Stage:
    """From its beginning on, exactly the parameters that `train` covers train; all others are frozen.

    A stage begins at an epoch, at an optimizer step, or at the first epoch after `until` is reached, `epoch` then being the latest.

    Args:
        train: patterns (see `ftlit.patterns`), at least one.
        epoch: the first epoch of this stage, counted from 0; with `until`, the latest. 0 where nothing is given.
        step: the first optimizer step of this stage, counted from 0.
        until: what ends the stage before.
        name: what the plan and the progress bar call it; the patterns by default.
        batchnorm: `auto`, `live`, `frozen` or `frozen_stats` for every batch norm, or a mapping from patterns to these; see
            `ftlit.finetuning.freeze`. `None` leaves it open and means `auto`.
        from_best: begin with the weights that were best by `until` in the stage before.

    Raises:
        UserError: no pattern, a beginning that is no whole number from 0, or arguments that contradict each other.
    """

    train: Sequence[str]
    epoch: int | None = None
    step: int | None = None
    until: Until | None = None
    name: str = ""
    batchnorm: BatchNorm | None = None
    from_best: bool = False

    def __post_init__(self) -> None:
        train = (self.train,) if isinstance(self.train, str) else tuple(self.train)
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "name", self.name or " + ".join(train))
        if self.epoch is None and self.step is None and self.until is None:
            object.__setattr__(self, "epoch", 0)
        if not train:
            raise UserError(f"stage {self.name or self.epoch!r} trains nothing: give at least one pattern, '*' for everything")
        for unit, value in (("epoch", self.epoch), ("step", self.step)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise UserError(f"stage {self.name!r} begins at {unit} {value!r}: give a whole number from 0")
        if self.step is not None and (self.epoch is not None or self.until is not None):
            raise UserError(f"stage {self.name!r} begins at step {self.step} and otherwise too: give epoch, step, or until with epoch")
        if self.until is not None and self.epoch is None:
            raise UserError(f"stage {self.name!r} waits until {self.until}, perhaps for ever: give epoch=, the latest it may begin")
        if self.from_best and self.until is None:
            raise UserError(f"stage {self.name!r} begins from the best weights: give until, whose metric says which are the best")
        if self.batchnorm is not None:
            check_batchnorm(self.batchnorm)

    @property
    def policy(self) -> BatchNorm:
        """`batchnorm`, or what it means where it is left open."""
        return self.batchnorm or "auto"

    @property
    def begins(self) -> str:
        """When it begins, in words."""
        if self.until is not None:
            return f"when {self.until}, at epoch {self.epoch} at the latest"
        return f"epoch {self.epoch}" if self.step is None else f"step {self.step}"
