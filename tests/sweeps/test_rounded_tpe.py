"""Numbers that a search with Optuna draws are short, and the ones that it goes on with."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

optuna = pytest.importorskip("optuna")

from ftlit.sweeps.rounded_tpe import RoundedTPESampler, rounded  # noqa: E402  # after the check that there is optuna

NUMBERS = st.floats(1e-9, 1e9)


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted))
def test_a_rounded_number_stays_in_its_interval(numbers):
    low, value, high = numbers
    found = rounded(value, SimpleNamespace(low=low, high=high))
    assert low <= found <= high
    assert found in (low, high) or (found == float(f"{found:.3g}") and found == pytest.approx(value, rel=0.005))


def test_words_whole_numbers_and_numbers_on_a_grid_are_as_they_were_drawn():
    assert (rounded("mlp", SimpleNamespace(choices=("mlp",))), rounded(12345, SimpleNamespace(low=1, high=20000))) == ("mlp", 12345)
    trial = optuna.create_study(sampler=RoundedTPESampler(seed=0)).ask()
    assert trial.suggest_float("x", 1000.125, 1001.125, step=0.125) in [1000.125 + i / 8 for i in range(9)]


@pytest.mark.parametrize("multivariate", [False, True])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_search_goes_on_with_the_numbers_that_it_shows(multivariate):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RoundedTPESampler(seed=0, n_startup_trials=2, multivariate=multivariate))
    used = []

    def distance(trial):
        used.append((trial.suggest_float("lr", 1e-5, 1e-2, log=True), trial.suggest_float("scale", 0.0, 1.0)))
        return abs(used[-1][0] - 1e-3) + used[-1][1]

    study.optimize(distance, n_trials=6)
    assert [tuple(trial.params.values()) for trial in study.trials] == used
    assert all(number == float(f"{number:.3g}") for numbers in used for number in numbers)
