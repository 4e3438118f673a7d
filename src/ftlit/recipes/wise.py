"""Choose, after training with `average=wise`, the weights between the beginning and the best epoch that are the result of the run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from ftlit.errors import UserError
from ftlit.finetuning.interpolation import interpolated
from ftlit.inference.record import KEY, base_of, read_record
from ftlit.inference.slim import filled
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.wise_weights import WiseWeights
from ftlit.lit.module import FineTuner
from ftlit.lit.trainer_internals import find_callback
from ftlit.models.lora import LowRank
from ftlit.recipes.baseline import judged_by
from ftlit.recipes.run.loggers import logged_to
from ftlit.run_folder import RUN, RUN_STATE
from ftlit.tensor_files import load_checkpoint, save_checkpoint

WISE = "wise"  # key in `best.ckpt`, and of the entries of `result.json`


@dataclass(frozen=True)
class WiseChoice:
    """What val said of each share of the best epoch.

    Args:
        metric: that decided.
        values: share of the best epoch -> value of the metric, from 0, the beginning, to 1.
        alpha: the chosen share.
    """

    metric: str
    values: Mapping[float, float]
    alpha: float

    def record(self) -> dict[str, float]:
        """Entries of `result.json`."""
        places = {"start": 0.0, "end": 1.0, "chosen": self.alpha}
        return {f"{WISE}/alpha": self.alpha} | {f"{WISE}/{name}/{self.metric}": self.values[alpha] for name, alpha in places.items()}

    def describe(self) -> str:
        """The choice, in words."""
        start, end, chosen = (self.values[alpha] for alpha in (0.0, 1.0, self.alpha))
        return f"average=wise chose alpha {self.alpha:g}: {self.metric} {chosen:.4f} (start, alpha 0: {start:.4f}; end, alpha 1: {end:.4f})"


def check_wise(trainer: pl.Trainer, *, fits_head: bool) -> None:
    """Refuse `average=wise` where the beginning of training is a random head, or where nothing says what is best.

    Raises:
        UserError: what is missing.
    """
    if find_callback(trainer, WiseWeights) is None:
        return
    if not fits_head:
        raise UserError(
            "average=wise interpolates between a fitted head and the trained network, but this head starts from random weights: give "
            "head=linear_probe, or leave average=wise out"
        )
    if judged_by(trainer) is None:
        raise UserError(
            "average=wise needs the default callbacks.best to choose on val: leave your callbacks.best=..., "
            "callbacks.best.save_top_k and callbacks.best.monitor out, or leave average=wise out"
        )


def choose_weights(trainer: pl.Trainer, model: FineTuner, data: Any, folder: Path) -> WiseChoice | None:
    """Validate each interpolation of the beginning and the best epoch, and save the best one as `best.ckpt`; of equal ones the one nearest
    to the beginning, because less change of pretrained features is safer under a shift (Wortsman et al. 2022, section 4).

    Where a baseline is proposed, `BestCheckpoint` decides between the two, and the baseline may become `best.ckpt`.

    Args:
        trainer: after training.
        model: that was trained; its weights are changed in place.
        data: of the run.
        folder: of the run.

    Returns:
        The choice; `None` where the run has none: another average, or no epoch.

    Raises:
        UserError: a checkpoint is missing or damaged, or the two are of different runs.
    """
    wise, best = find_callback(trainer, WiseWeights), judged_by(trainer)
    if wise is None or best is None or not best.best_model_path:
        return None
    begin, content = (load_checkpoint(path) for path in (wise.path, Path(best.best_model_path)))
    if begin[RUN_STATE][RUN] != content[RUN_STATE][RUN]:
        raise UserError(f"{wise.path} is the checkpoint of another run: restore the file of this run, or start a new run")
    start, end = _states(begin, content)
    of_end = {f"{name}.a" for name, part in model.named_modules() if isinstance(part, LowRank)}  # B is 0 at the start: then A has no effect
    values = {}
    with logged_to(trainer, []):  # these validations are no results
        for alpha in wise.alphas:
            model.load_state_dict(interpolated(start, end, alpha, of_end))
            values[alpha] = float(trainer.validate(model, data, verbose=False)[0][str(best.monitor)])
    choice = WiseChoice(str(best.monitor), values, _best_of(values, best))
    path = folder / "checkpoints" / "best.ckpt"
    if trainer.is_global_zero:
        state = model.kept_in_checkpoints(interpolated(start, end, choice.alpha, of_end))
        save_checkpoint({**content, "state_dict": state, WISE: choice.record()}, path)
    best.end_with(path, values[choice.alpha], writes=trainer.is_global_zero)
    trainer.strategy.barrier()
    return choice


def _best_of(values: Mapping[float, float], best: BestCheckpoint) -> float:
    """The least share with the best value. NaN is no value."""
    sign = -1 if best.mode == "min" else 1
    known = {alpha: sign * value for alpha, value in values.items() if value == value}
    return min(known, key=lambda alpha: (-known[alpha], alpha), default=1.0)


def _states(*checkpoints: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The weights of checkpoints of one run, complete where they are slim."""
    record = read_record(checkpoints[0]) if KEY in checkpoints[0] else {}
    base = base_of(record) if record.get("base") else None
    return [dict(each["state_dict"]) if base is None else filled(each["state_dict"], base) for each in checkpoints]
