"""What a run leaves that was interrupted after its head was fitted: the best checkpoint so far, a table of what is known, and a page."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from ftlit.errors import one_line
from ftlit.files import write_atomically
from ftlit.lit.callbacks.best_checkpoint import BestCheckpoint
from ftlit.lit.callbacks.metrics_file import complete_rows
from ftlit.lit.trainer_internals import find_callback, has_ended
from ftlit.printing import print_line
from ftlit.recipes.baseline import Baseline, Results, checkpoint_in
from ftlit.recipes.build_run import Run
from ftlit.recipes.console.results_table import print_interrupted_results
from ftlit.recipes.processes.job_process import is_interruption
from ftlit.recipes.run_report.run_report import write_interrupted_report
from ftlit.recipes.run_result import fitted_on


@dataclass(frozen=True)
class KnownResult:
    """What is known of the model in `best.ckpt` when a run is interrupted.

    Args:
        model: the model, in words.
        metrics: `val/accuracy` and so on, those of test only where it was tested.
        where: when the run was interrupted, in words.
        epoch: whose weights the model has; `None` for a linear probe.
    """

    model: str
    metrics: Mapping[str, float]
    where: str
    epoch: int | None = None

    def describe(self) -> str:
        """The interruption and the model, in words."""
        missing = [split for split in ("val", "test") if f"{split}/accuracy" not in self.metrics]
        text = f"interrupted {self.where}: best.ckpt is {self.model}"
        return f"{text}; not evaluated on {' and '.join(missing)}" if missing else text


@contextmanager
def left_after_interruption(cfg: DictConfig, run: Run, found: Results) -> Iterator[None]:
    """Leave the model, the table and the page of a run that is interrupted in the block, in the first process. Afterwards the interruption
    goes on.

    Args:
        cfg: of the run.
        run: its parts.
        found: metrics of the fitted head, as far as they are known.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        if is_interruption(end) and run.trainer.is_global_zero:
            try:
                _leave(cfg, run, found)
            except Exception as error:  # a full disk, for instance: the line that says how to resume counts more
                print_line(f"no table of the interrupted run: {one_line(error)}")
        raise


def _leave(cfg: DictConfig, run: Run, found: Results) -> None:
    fitted: Run | Baseline | None = run.baseline or (None if run.trains else run)
    known = _known(cfg, run, fitted, found)
    if known is None:
        return
    splits = fitted_on(fitted if known.epoch is None else None)
    print_interrupted_results(known.metrics, splits, known.describe())
    if cfg.report:
        recorder = fitted.recorder if fitted and known.epoch is None else None
        tested = recorder.tested if recorder else None
        write_interrupted_report(cfg, run.data, known.describe(), known.metrics, tested, recorder.features if recorder else {})


def _known(cfg: DictConfig, run: Run, fitted: Run | Baseline | None, found: Results) -> KnownResult | None:
    """What is known of the best model so far, which is saved as `best.ckpt` if it is not yet; `None` where there is none."""
    best, callback = Path(cfg.paths.run, "checkpoints", "best.ckpt"), find_callback(run.trainer, BestCheckpoint)
    where = _where(run)
    if run.resume_from and run.trains and not run.trainer.global_step:  # not restored yet: which epoch `best.ckpt` has is not known
        return None
    if callback is not None and callback.best_epoch is not None and best.exists():
        metrics = _metrics_of(Path(cfg.paths.run, "metrics.csv"), callback.best_epoch)
        return KnownResult(f"the network of epoch {callback.best_epoch}", metrics, where, callback.best_epoch)
    if fitted is None or fitted.probe_head is None or fitted.probe_head.probe is None or (run.trains and callback is None):
        return None
    if not best.exists():
        _save_fitted(cfg, run, fitted, best)
    return KnownResult("the fitted head (epoch 0)", found, where) if best.exists() else None


def _save_fitted(cfg: DictConfig, run: Run, fitted: Run | Baseline, best: Path) -> None:
    """Save a fitted head as the best checkpoint. Several processes would wait for each other: there it must have been saved before."""
    own = checkpoint_in(Path(cfg.paths.run)) if run.trains else best.with_name("last.ckpt")
    if not own.exists() and run.trainer.world_size == 1:
        fitted.trainer.save_checkpoint(own)
    if own.exists():
        write_atomically(best, own.read_bytes())


def _where(run: Run) -> str:
    if not run.trains:
        return "while the fitted head was evaluated"
    if not run.trainer.global_step:
        return "before the first step"
    if has_ended(run.trainer):
        return "while the result was evaluated"
    last = "" if run.trainer.max_epochs in (None, -1) else f" (the last would be {run.trainer.max_epochs - 1})"
    return f"in epoch {run.trainer.current_epoch}{last}, after {run.trainer.global_step} steps"


def _metrics_of(path: Path, epoch: int) -> dict[str, float]:
    """The metrics on val of an epoch, from `metrics.csv`."""
    rows = complete_rows(path.read_text()) if path.is_file() else []
    of_epoch = next((row for row in rows if row.get("epoch") == str(epoch) and "val/accuracy" in row), {})
    return {name: float(value) for name, value in of_epoch.items() if name.startswith("val/")}
