"""Optuna's TPE with rounded numbers: a learning rate of 17 digits fills the table, and nobody types it again."""

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

DIGITS = 3  # significant ones


class RoundedTPESampler(TPESampler):
    """TPE whose numbers from an interval are rounded before Optuna stores them, so that search, job and table have the same number."""

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Draw several parameters together, of a multivariate search."""
        drawn = super().sample_relative(study, trial, search_space)
        return {name: rounded(value, search_space[name]) for name, value in drawn.items()}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Draw one parameter."""
        return rounded(super().sample_independent(study, trial, param_name, param_distribution), param_distribution)


def rounded(value: Any, distribution: Any) -> Any:
    """A float from an interval, with `DIGITS` significant digits and within the interval; other values as they are, also those on a grid.

    Args:
        value: what was drawn.
        distribution: what it was drawn from; its grid is `step`, and `q` before Optuna 3.
    """
    if not isinstance(value, float) or getattr(distribution, "step", None) or getattr(distribution, "q", None):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)
