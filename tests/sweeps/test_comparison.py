"""The comparison of a sweep with any setting: what stands below its table."""

from dataclasses import replace

import pytest

from ftlit.errors import UserError
from ftlit.sweeps.comparison import print_comparison
from ftlit.sweeps.jobs import TEST, Job
from ftlit.sweeps.plan_file import SweepPlan


def compared(capsys, jobs) -> str:
    print_comparison(jobs, ["head=a"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("other", "marked"), [((0.70, 0.72, 0.71), True), ((0.95, 0.70, 0.93), False)])
def test_the_sign_is_explained_only_where_it_marks_a_difference_and_not_by_the_best_setting(capsys, other, marked):
    heads = {"a": (0.90, 0.91, 0.92), "b": other}
    jobs = [
        Job(10 * place + seed, (f"head={head}", f"seed={seed}"), status=0, metrics={TEST: value})
        for place, (head, values) in enumerate(heads.items())
        for seed, value in enumerate(values)
    ]
    text = compared(capsys, jobs)
    assert ("†" in text) == ("established difference" in text) == marked and "that of head=a," in text and "the best" not in text
    assert "Incomplete" not in text


def test_an_unfinished_sweep_is_said_to_be_incomplete(capsys):
    plan = SweepPlan(2, ("head",), "ftlit train", [["head=a"], ["head=b"]])
    job = Job(0, ("head=a",), status=0, metrics={TEST: 0.9}, sweep=plan)
    assert "Incomplete: 1 of 2 jobs has finished. 1 job has not begun: 1 (head=b). Difference: " in compared(capsys, [job])
    both = [job, replace(job, number=1, overrides=("head=b",))]
    assert "Incomplete" not in compared(capsys, both) and "not begun" not in compared(capsys, both)


@pytest.mark.parametrize("word", ["optimizer.lr=3e-4", "optimizer.lr=0.0003", "+optimizer.lr=.30e-3"])
def test_a_number_names_its_setting_however_it_is_written(capsys, word):
    jobs = [Job(n, (f"optimizer.lr={lr}",), status=0, metrics={TEST: 0.9}) for n, lr in enumerate(("0.0003", "0.003"))]
    print_comparison(jobs, [word])
    assert "minus that of optimizer.lr=0.0003," in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="matches no setting"):
        print_comparison(jobs, ["optimizer.lr=3e-5"])
