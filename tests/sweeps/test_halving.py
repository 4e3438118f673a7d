"""Successive halving: rungs, scores and who goes on."""

from itertools import pairwise
from math import inf

import pytest

from ftlit.sweeps.halving import Monitor, Rung, rungs_of, score_at, share_of_steps, survivors
from ftlit.sweeps.jobs import Job
from ftlit.sweeps.setting_jobs import Setting

ACCURACY, LOSS = Monitor("val/accuracy", lowest=False), Monitor("val/loss", lowest=True)


@pytest.mark.parametrize("settings", [2, 3, 4, 9, 27, 100])
@pytest.mark.parametrize(("epochs", "first", "eta", "reduction"), [(9, 1, 3, 3), (20, 2, 3, 3), (10, 1, 2, 4), (5, 4, 3, 3), (81, 1, 3, 2)])
def test_rungs_grow_to_the_whole_training_and_at_each_but_the_last_a_setting_stops(settings, epochs, first, eta, reduction):
    rungs = rungs_of(settings, epochs, first=first, eta=eta, reduction=reduction)
    ends, counts = [rung.epochs for rung in rungs], [rung.settings for rung in rungs]
    assert ends == sorted(set(ends)) and ends[0] >= first and ends[-1] == epochs
    assert counts[0] == settings and counts[-1] >= 1 and all(after < before for before, after in pairwise(counts))
    assert share_of_steps(rungs) < 1


def test_a_series_with_the_ratio_eta_keeps_one_of_eta():
    assert rungs_of(27, 9) == [Rung(1, 27), Rung(3, 9), Rung(9, 3)]
    assert share_of_steps(rungs_of(27, 9)) == (27 * 1 + 9 * 2 + 3 * 6) / (27 * 9)  # nothing is trained twice


def write(folder, *rows):
    folder.mkdir()
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,val/accuracy,val/loss", *rows, ""]))


def test_the_score_is_that_of_the_best_epoch_before_the_rung_and_later_ones_do_not_count(tmp_path):
    write(tmp_path / "0", ",9,,", "0,10,0.5,0.9", "1,20,0.75,0.8", "2,30,0.75,0.7", "3,40,0.9,0.1")
    assert score_at(tmp_path / "0", 1, ACCURACY) == (-0.5, 0.9) and score_at(tmp_path / "0", 3, ACCURACY) == (-0.75, 0.7)
    assert score_at(tmp_path / "0", 3, LOSS) == (0.7, 0.7) and LOSS.value((0.7, 0.7)) == 0.7 and ACCURACY.value((-0.5, 0.9)) == 0.5


@pytest.mark.parametrize("rows", [[], ["0,1,nan,nan"], ["0,1,,"], ["5,1,0.5,0.5"]])
def test_a_job_without_a_number_before_the_rung_ranks_last(rows, tmp_path):
    write(tmp_path / "0", *rows)
    assert score_at(tmp_path / "0", 1, ACCURACY) == (inf, inf) == score_at(tmp_path / "1", 1, ACCURACY)


def setting(name, *numbers):
    return Setting((name,), tuple(Job(number) for number in numbers))


def test_settings_are_ranked_on_the_mean_over_their_seeds_and_these_go_on_together():
    settings = [setting("a", 0, 1), setting("b", 2, 3), setting("c", 4, 5)]
    scores = {0: (-0.9, 1.0), 1: (-0.5, 1.0), 2: (-0.8, 1.0), 3: (-0.8, 1.0), 4: (-1.0, 1.0), 5: (-0.1, 1.0)}
    assert survivors(settings, scores, 2) == [settings[1], settings[0]]


def test_of_equal_settings_the_one_with_the_lower_loss_goes_on_then_the_earlier_one():
    settings = [setting("a", 0), setting("b", 1), setting("c", 2)]
    assert survivors(settings, {0: (-1.0, 0.5), 1: (-1.0, 0.25), 2: (-1.0, 0.5)}, 2) == [settings[1], settings[0]]


def test_a_setting_with_a_job_without_a_number_does_not_go_on():
    settings = [setting("a", 0), setting("b", 1, 2), setting("c", 3)]
    scores = {0: (inf, inf), 1: (-0.9, 1.0), 2: (inf, inf), 3: (-0.1, inf)}
    assert survivors(settings, scores, 2) == [settings[2]] and survivors(settings[:2], scores, 1) == []


def test_a_setting_whose_jobs_failed_does_not_go_on_and_takes_nobodys_place():
    settings = [setting("a", 0), setting("b", 1), setting("c", 2)]
    assert survivors(settings, {1: (-0.1, 2.0)}, 2) == [settings[1]] and survivors(settings, {}, 2) == []
