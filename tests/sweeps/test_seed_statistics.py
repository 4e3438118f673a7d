"""Intervals over seeds are those of Student's t; settings are compared seed by seed."""

import pytest
from scipy import stats

from ftlit.sweeps.jobs import TEST, Job
from ftlit.sweeps.seed_statistics import difference, half_interval, interval
from ftlit.sweeps.setting_jobs import Setting


def setting(name, accuracies):
    """A setting with the test accuracy of each seed."""
    jobs = [Job(0, (f"head={name}", f"seed={seed}"), status=0, metrics={TEST: value}) for seed, value in accuracies.items()]
    return Setting((name,), tuple(jobs))


@pytest.mark.parametrize("values", [[0.7, 0.8, 0.9], [0.1, 0.3], [0.5, 0.5, 0.5, 0.6]])
def test_the_half_interval_is_that_of_scipy(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=0, scale=stats.sem(values))
    assert half_interval(values) == pytest.approx(high) == pytest.approx(-low)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5]])
def test_there_is_no_interval_without_two_different_values(values):
    assert half_interval(values) is None and interval(values, share=True) is None


def test_the_interval_of_a_share_is_clipped_to_0_and_1_and_that_of_another_number_is_not():
    assert interval([0.9, 1.0], share=True)[1] == 1.0 and interval([0.0, 0.1], share=True)[0] == 0.0
    low, high = interval([0.9, 1.0], share=False)
    assert high - 0.95 == pytest.approx(0.95 - low) == pytest.approx(half_interval([0.9, 1.0])) and high > 1


def test_the_difference_of_two_settings_is_the_paired_t_interval_over_their_common_seeds():
    a, b = {0: 0.7, 1: 0.81, 2: 0.9, 3: 0.2}, {2: 0.93, 0: 0.75, 1: 0.82, 4: 0.1}
    found = difference(setting("a", a), setting("b", b), TEST)
    low, high = stats.ttest_rel([a[seed] for seed in range(3)], [b[seed] for seed in range(3)]).confidence_interval(0.95)
    assert found.seeds == 3 and found.limits == pytest.approx((low, high))
    assert difference(setting("b", b), setting("a", a), TEST).limits == pytest.approx((-high, -low))
    assert str(found) == "-0.0300 ± 0.0497"


def test_equal_differences_and_a_single_one_have_no_interval_and_without_a_common_seed_there_is_no_difference():
    same = difference(setting("a", {1: 0.2, 2: 0.3}), setting("b", {1: 0.0, 2: 0.1}), TEST)  # 0.3 - 0.1 is not 0.2 in floating point
    assert (same.mean, same.half, same.limits, str(same)) == (0.2, None, None, "+0.2000")
    one = difference(setting("a", {1: 0.5, 2: 0.75}), setting("b", {2: 0.25, 3: 0.5}), TEST)
    assert (one.seeds, one.limits, one.is_established, str(one)) == (1, None, False, "+0.5000")
    assert difference(setting("a", {1: 0.5}), setting("b", {2: 0.25}), TEST) is None
    without_seed = Setting(("c",), (Job(0, ("head=c",), status=0, metrics={TEST: 0.5}),))
    assert difference(without_seed, without_seed, TEST).mean == 0
