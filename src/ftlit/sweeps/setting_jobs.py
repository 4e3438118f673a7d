"""The settings of a sweep: jobs that differ in their seed alone, and the metric that ranks them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import mean

from ftlit.run_folder import TRAINED
from ftlit.sweeps.jobs import CROSS_VALIDATED, HELD_OUT, SCORE, SEED, VAL, Job, varying


@dataclass(frozen=True)
class Setting:
    """Jobs that differ in their seed alone.

    Args:
        values: of the overrides that vary within the sweep.
        jobs: by seed.
    """

    values: tuple[str, ...]
    jobs: tuple[Job, ...]

    @property
    def done(self) -> list[Job]:
        """The successful jobs, the last one per seed."""
        return list({job.values.get(SEED): job for job in self.jobs if job.status == 0}.values())

    def of(self, metric: str) -> list[float]:
        """The values of a metric, one per seed that has one."""
        return list(self.by_seed(metric).values())

    def by_seed(self, metric: str) -> dict[str | None, float]:
        """The value of a metric for each seed that has one; the seed is `None` in a job that does not give it."""
        found = ((job.values.get(SEED), job.value(metric)) for job in self.done)
        return {seed: value for seed, value in found if value is not None and isfinite(value)}

    def spread(self, metric: str) -> list[float]:
        """The values that standard deviation and interval are of: one per seed, or, of a single seed, one per random sample."""
        done = self.done
        if len(done) == 1 and len(done[0].samples) > 1:
            return [sample[metric] for sample in done[0].samples if isfinite(sample.get(metric, nan))]
        return self.of(metric)

    @property
    def failed(self) -> list[Job]:
        """The jobs that neither finished nor stopped at a rung."""
        return [job for job in self.jobs if job.has_failed]


def settings_of(jobs: Sequence[Job]) -> list[Setting]:
    """The settings, in the order of the jobs."""
    names = varying(jobs)
    keys = [tuple(job.values.get(name, "") for name in names) for job in jobs]
    return [Setting(key, tuple(job for job, own in zip(jobs, keys, strict=True) if own == key)) for key in dict.fromkeys(keys)]


def best_first(settings: Sequence[Setting], by: str) -> list[Setting]:
    """The settings that have a metric, the one with the highest mean first."""
    return sorted((setting for setting in settings if setting.of(by)), key=lambda setting: mean(setting.of(by)), reverse=True)


def ranking_metric(jobs: Sequence[Job]) -> str:
    """The metric that ranks the settings: accuracy on held-out images, or the score where no job has one. Where all jobs train layers it is
    that of the best epoch, as the result of a job may be the linear probe before training, which is the same in all of them.
    """
    done = [job for job in jobs if job.status == 0]
    if done and all(TRAINED in job.metrics for job in done):
        return TRAINED
    found = [metric for metric in (VAL, CROSS_VALIDATED) if any(metric in job.metrics for job in jobs)]
    return HELD_OUT if len(found) > 1 else found[0] if found else SCORE
