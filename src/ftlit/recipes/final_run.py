"""`final=true`: train once more on all images, without val and test, by a recipe that was chosen before."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig

from ftlit.errors import UserError
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.callbacks.wise_weights import WiseWeights
from ftlit.lit.trainer_internals import callbacks_of
from ftlit.printing import print_line
from ftlit.recipes.build_run import Run
from ftlit.recipes.config.overrides import given
from ftlit.recipes.run.artifacts import images_of
from ftlit.recipes.run.trainer import describe_fit
from ftlit.recipes.run_report.run_report import write_untested_report
from ftlit.report.start_rows import RUN as START
from ftlit.run_folder import write_result

SPLITS = "train + val + test"
NEEDS_VAL = "final=true trains on all images, so there is no val"


def check_final(cfg: DictConfig, schedule: Schedule, trainer: pl.Trainer) -> None:
    """Refuse, with `final=true`, what reads val or test.

    Raises:
        UserError: the option, and what to do.
    """
    if not cfg.final:
        return
    if words := given("callbacks.best.monitor", "callbacks.best.mode", "callbacks.best.save_top_k"):
        raise UserError(f"{NEEDS_VAL} to choose the best epoch on: leave {words[0]} out; the last epoch is kept")
    if any(isinstance(callback, EarlyStopping) for callback in callbacks_of(trainer)):
        raise UserError(f"{NEEDS_VAL} to stop early on: leave the early stopping out, and give the number of epochs as trainer.max_epochs")
    if any(isinstance(callback, WiseWeights) for callback in callbacks_of(trainer)):
        raise UserError(f"{NEEDS_VAL} to choose the weights of average=wise on: leave average=wise out")
    if (monitor := cfg.lr_scheduler.get("monitor")) is not None and monitor.startswith("val/"):
        raise UserError(f"{NEEDS_VAL}, but the learning rate follows {monitor}: give another lr_scheduler, such as lr_scheduler=cosine")
    if stage := next((stage for stage in schedule.stages if stage.until is not None), None):
        raise UserError(f"{NEEDS_VAL}, but a stage begins by {stage.until and stage.until.metric}: give the epoch of the stage instead")
    if words := given("trainer.limit_val_batches", "trainer.limit_test_batches"):
        raise UserError(f"{NEEDS_VAL} and no test: leave {words[0]} out")


def plan_rows_of(data: Any) -> list[tuple[str, str]]:
    """The row of the plan on a run with `final=true`."""
    images = images_of(data)
    noun = images.input_spec.noun if images else "examples"
    return [
        ("final", f"all {noun} train, those of val and test too; the weights at the end are kept as best.ckpt, and there are no scores")
    ]


def end_final(cfg: DictConfig, run: Run, seconds: float) -> None:
    """Save the network, if it was only fitted, and print and write what there is without val and test."""
    checkpoints = Path(cfg.paths.run, "checkpoints")
    if not run.trains:
        for name in ("last", "best"):
            run.trainer.save_checkpoint(checkpoints / f"{name}.ckpt")
    if not run.trainer.is_global_zero:
        return
    images = images_of(run.data)
    number, noun = (len(images.collection.splits["train"]), images.input_spec.noun) if images else (0, "examples")
    text = f"final=true: trained on all {number:,} {noun} ({SPLITS}); no scores, because none are left out"
    earlier = {START: run.start.run.name} if run.start else {}
    write_result(cfg.paths.run, {"fitted_on": SPLITS, "images": number, **earlier})
    notes = describe_fit(run.trainer, seconds, trains=run.trains)[:1]
    print_line(f"{text}; {'; '.join(notes)}; best and last checkpoint, config.yaml: {cfg.paths.run}")
    if cfg.report:
        write_untested_report(cfg, text)
