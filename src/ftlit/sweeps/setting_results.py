"""The results of a sweep by setting: what ranks the settings, the best ones, intervals and differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from ftlit.run_folder import TRAINED
from ftlit.sweeps.jobs import CROSS_VALIDATED, HELD_OUT, PROBES_TRIED, SCORE, TEST, VAL, Job, varying
from ftlit.sweeps.seed_statistics import PairedDifference, difference, interval
from ftlit.sweeps.setting_jobs import Setting, best_first, ranking_metric, settings_of

CHOSEN = {"backbone": "chosen backbone", "advised": "advised", "cut": "cut"}  # field of a job -> its column
RANKINGS = {  # metric that ranks the settings -> its name
    VAL: "val accuracy",
    CROSS_VALIDATED: "cross-validated accuracy",
    HELD_OUT: "held-out accuracy",
    TRAINED: "val accuracy, best epoch",
    SCORE: SCORE,
}


@dataclass(frozen=True)
class SettingResults:
    """The results of a sweep by setting.

    Args:
        jobs: of the sweep, in the order of the table.
    """

    jobs: Sequence[Job]

    @cached_property
    def names(self) -> list[str]:
        """The swept options, without the seed."""
        return varying(self.jobs)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, one per row."""
        return settings_of(self.jobs)

    @cached_property
    def by(self) -> str:
        """The metric that ranks the settings."""
        return ranking_metric(self.jobs)

    @property
    def metric(self) -> str:
        """The metric whose statistics are shown."""
        return SCORE if self.by == SCORE else TEST

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share: the score of `recipe=advise` is an accuracy too."""
        return self.metric == TEST or self._recipes == {"advise"}

    @property
    def are_range_tests(self) -> bool:
        """Whether the score is a learning rate."""
        return "lr_find" in self._recipes

    @property
    def _recipes(self) -> set[str]:
        configs = [job.config for job in self.jobs if isinstance(job.config, dict)]  # in format 0 a digest
        return {str(config.get("settings", {}).get("recipe")) for config in configs}

    @cached_property
    def best(self) -> list[Setting]:
        """The best settings, several where their means are equal; none where there is nothing to choose from."""
        ranked = best_first(self.settings, self.by) if len(self.settings) > 1 and not self.are_range_tests else []
        return [setting for setting in ranked if mean(setting.of(self.by)) == mean(ranked[0].of(self.by))]

    @cached_property
    def differences(self) -> list[PairedDifference | None]:
        """The paired difference in test accuracy of each setting to the first of the best by val; `None` for this one, and where no seed is
        in common.
        """
        if not self.best or self.metric != TEST:
            return [None] * len(self.settings)
        return [None if setting is self.best[0] else difference(setting, self.best[0], TEST) for setting in self.settings]

    @property
    def intervals(self) -> list[tuple[float, float] | None]:
        """The 95 % interval of each setting."""
        return [interval(setting.spread(self.metric), share=self.is_share) for setting in self.settings]

    @cached_property
    def probes_tried(self) -> str:
        """The number of probes of which a job takes the best, `5` or `5 to 9`; empty where it is 1, and for other recipes."""
        prefixes = {HELD_OUT: ("val", "cross_validated")}.get(self.by, (self.by.partition("/")[0],))
        found = [job.metrics.get(f"{prefix}/{PROBES_TRIED}", 0) for job in self.jobs for prefix in prefixes]
        numbers = sorted({int(number) for number in found if number})
        if not numbers or numbers[-1] == 1:
            return ""
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

    @property
    def ranking(self) -> str:
        """The name of the metric that ranks the settings."""
        return RANKINGS[self.by] + (f", best of {self.probes_tried} probes" if self.probes_tried else "")


def chosen_by(setting: Setting, field: str) -> str:
    """What the jobs of a setting chose, comma separated; empty where they chose nothing."""
    found = [getattr(job, field) for job in setting.done]
    return ", ".join(dict.fromkeys(value or "-" for value in found)) if any(found) else ""


def at_rung_of(setting: Setting) -> float | None:
    """The metric that ranks at the last rung that the jobs of a setting reached, their mean; `None` where none has it."""
    last = max(job.rung for job in setting.jobs)
    found = [job.at_last_rung for job in setting.jobs if job.rung == last and job.at_last_rung is not None]
    return mean(found) if found else None


def rung_of(setting: Setting) -> str:
    """The rungs of successive halving that the jobs of a setting reached, see `Job.rung_in_words`; comma separated."""
    return ", ".join(dict.fromkeys(job.rung_in_words for job in setting.jobs))


def seconds_of(setting: Setting) -> float | None:
    """The mean duration of a job that has finished, or stopped at a rung."""
    seconds = [job.seconds for job in setting.jobs if not job.has_failed and job.seconds is not None]
    return mean(seconds) if seconds else None
