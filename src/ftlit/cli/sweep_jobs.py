"""The jobs of a sweep: each leaves word of itself in its folder, wherever it runs, and a sweep that is started again goes on."""

import hashlib
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ftlit.errors import UserError, one_line
from ftlit.recipes.config.overrides import which_job
from ftlit.recipes.run.processes import INTERRUPTED, MISTAKE, Ended
from ftlit.recipes.run.resume import MAY_CHANGE
from ftlit.sweeps import jobs
from ftlit.sweeps import summary as sweep
from ftlit.sweeps.jobs import Job

GO_ON = ("finetune", "pretrain")  # recipes that leave what a later run goes on from
BEGUN: list[Path] = []  # the folder of the sweep that this process goes through


class Watch(Callback):
    """Hydra tells it where a sweep begins, whatever launches the jobs. A second sweep in the folder of one is refused."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep's folder. Raises `SystemExit` with `MISTAKE`, as Hydra makes a warning of any other error."""
        folder = Path(config.hydra.sweep.dir)
        goes_on = OmegaConf.select(config, "sweep.resume")
        mistake = None
        if goes_on not in (None, True, False):
            mistake = f"sweep.resume={goes_on}: give true or false"
        elif jobs.is_sweep(folder) and not goes_on:
            mistake = f"{folder} holds a sweep already: give sweep.resume=true to go on with it, or another hydra.sweep.dir="
        try:
            done = sum(job.status == 0 for _, job in jobs.jobs_of(folder)) if goes_on and jobs.is_sweep(folder) else 0
        except UserError as error:
            mistake = str(error)
        if mistake:
            print(f"ftlit: {mistake}", file=sys.stderr)
            sys.exit(MISTAKE)
        if done:
            print(f"{done} of the jobs in {folder} ended well before, and are not run again")
        BEGUN.append(folder)


def job(cfg: DictConfig, run: Callable[[], float]) -> float:
    """Run a job and write down how it ended. Returns its score, NaN where it failed: the sweep goes on. One that has ended well is not run
    again.

    Raises:
        UserError: its folder is that of another job, of a sweep with other settings.
        SystemExit: with `INTERRUPTED`, which ends the sweep.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    before, this = jobs.read_job(folder), _begun(cfg)
    if before and before.config != this.config:
        raise UserError(
            f"{folder} holds job {before.number} of another sweep ({' '.join(before.overrides)}): give the settings that it was begun with "
            "(more values of the first one may follow), or another hydra.sweep.dir="
        )
    if before and before.status == 0:
        print(f"{which_job()} has ended already: {folder}")
        return nan if before.score is None else before.score
    if before and cfg.recipe in GO_ON and (folder / "config.yaml").is_file():
        _go_on(cfg)
        this = replace(this, seconds=before.seconds)
    this.write(folder)
    started, ended = time.perf_counter(), replace(this, status=1)
    try:
        score = run()
        ended = replace(this, status=0, reason="", score=None if isnan(score) else score)
        return score
    except (KeyboardInterrupt, SystemExit) as end:
        status = _status(end)
        ended = replace(this, status=status, reason=_reason(end) if status else "")
        if ended.status == INTERRUPTED:
            raise
    except Exception as error:
        traceback.print_exc()
        ended = replace(this, status=1, reason=f"{type(error).__name__}: {one_line(error)}")
    finally:
        replace(ended, seconds=round((this.seconds or 0) + time.perf_counter() - started, 2)).write(folder)
    return nan


def end() -> int:
    """Print the table of the sweep that this process went through, if any, and name the failed jobs on stderr, one a line. Returns the
    sweep's status: `MISTAKE` where all failures are mistakes, 1 where not, 0 for none.
    """
    statuses = set()
    for folder in filter(jobs.is_sweep, BEGUN):
        with suppress(BrokenPipeError):
            sweep.report(folder)
        for path, job in jobs.failed(folder):
            about = f"job {job.number} ({' '.join(job.overrides)})"
            how = jobs.RUNNING if job.status is None else f"failed with status {job.status}"
            print(f"ftlit: {about} {how}, its folder: {path.absolute()}", file=sys.stderr)
            statuses.add(job.status)
    return 0 if not statuses else MISTAKE if statuses == {MISTAKE} else 1


def _begun(cfg: DictConfig) -> Job:
    hydra = HydraConfig.get()
    given = tuple(word for word in hydra.overrides.task if not word.lstrip("+").startswith("sweep."))
    return Job(hydra.job.num, given, hashlib.sha256(_settings(cfg).encode()).hexdigest())


def _settings(cfg: DictConfig) -> str:
    """What a job is known by: its config, less what may change when a run goes on."""
    kept = OmegaConf.create(OmegaConf.to_container(cfg))
    for name in MAY_CHANGE:
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(kept, parent) if parent else kept
        if isinstance(node, DictConfig) and leaf in list(map(str, node)):  # `in` and `pop` would resolve the value
            del node[leaf]
    return OmegaConf.to_yaml(kept, sort_keys=True)


def _go_on(cfg: DictConfig) -> None:
    """As if `resume=true` had been given for this job alone; a process that it starts, or a config composed again, reads that too."""
    cfg.resume = True
    known: Any = HydraConfig.get()
    with read_write(known), open_dict(known):
        known.overrides.task.append("resume=true")


def _status(end: BaseException) -> int:
    """Python's: no code is success, a text is 1."""
    code = getattr(end, "code", INTERRUPTED)
    return code if isinstance(code, int) else int(code is not None)


def _reason(end: BaseException) -> str:
    if isinstance(end, Ended):
        return end.reason
    return "interrupted" if _status(end) == INTERRUPTED else one_line(end.__context__ or end)
