"""The figure of a sweep: which plots it has, and what they show."""

import pytest

from ftlit.sweeps.jobs import STOPPED, TEST, VAL, Job
from ftlit.sweeps.plan_file import SweepPlan
from ftlit.sweeps.setting_results import SettingResults
from ftlit.sweeps.settings_table import table_of
from ftlit.sweeps.sweep_figure import MAX_CURVES, draw, numeric_option


@pytest.fixture
def figures(monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    return drawn


def jobs_with(*words):
    return [Job(i, tuple(own.split()), status=0, metrics={VAL: 0.5, TEST: i / 100}) for i, own in enumerate(words)]


def test_stopped_jobs_show_the_metric_at_their_rungs_in_the_table_and_the_figure(tmp_path, figures):
    plan = SweepPlan(4, ["lr"], "", epochs=9, monitor=VAL)
    ends = {"1": ((1, 0.5),), "2": ((1, 0.6), (3, 0.75), (9, 0.9))}
    jobs = [
        Job(
            2 * place + seed,
            (f"lr={lr}", f"seed={seed}"),
            status=0 if len(at) == 3 else STOPPED,
            seconds=4.0,
            rung=len(at),
            epochs=at[-1][0],
            at_rungs=tuple((epochs, value + seed / 50) for epochs, value in at),
            metrics={VAL: 0.9, TEST: 0.9} if len(at) == 3 else {},
            sweep=plan,
        )
        for place, (lr, at) in enumerate(ends.items())
        for seed in (0, 1)
    ]
    header, rows = table_of(jobs)
    for name, cells in {"val accuracy at the rung": ["0.5100", "0.9100"], "job seconds": ["4.0", "4.0"]}.items():
        assert [row[header.index(name)] for row in rows] == cells
    draw(tmp_path / "sweep.png", jobs)
    _, rungs = figures[0].axes
    found = {line.get_label(): ([*line.get_xdata()], [*line.get_ydata()]) for line in rungs.get_lines()}
    assert found == {
        "stopped": ([1], pytest.approx([0.51])),
        "trained to the end": ([1, 3, 9], pytest.approx([0.61, 0.76, 0.91])),
    }
    assert rungs.get_ylabel() == VAL and [label.get_text() for label in rungs.get_xticklabels()] == ["1", "3", "9"]


def test_a_numeric_option_has_a_curve_for_each_combination_of_the_others(tmp_path, figures):
    words = [f"head={head} size={size} seed={seed}" for head in ("a", "b") for size in (5, 10, 40) for seed in (1, 2)]
    draw(tmp_path / "sweep.png", jobs_with(*words))
    _, axes = figures[0].axes
    assert axes.get_xlabel() == "size" and axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["head=a", "head=b"]
    curves = [own.lines[0] for own in axes.containers]
    assert [[*line.get_xdata()] for line in curves] == [[5, 10, 40]] * 2
    assert [*curves[0].get_ydata()] == pytest.approx([0.005, 0.025, 0.045])


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["x=1", "x=2", "x=3"], 0),
        (["x=0", "x=1", "x=2"], 0),
        (["x=1", "x=2"], None),
        (["x=1", "x=2", "x=null"], None),
        (["x=1 y=1", "x=1 y=2", "x=1 y=3", "x=2 y=1"], 1),
        ([f"head=h{head} x={x}" for head in range(MAX_CURVES + 1) for x in (1, 2, 3)], None),
    ],
)
def test_a_curve_needs_three_numbers_and_few_combinations_of_the_other_options(words, place, tmp_path, figures):
    jobs = jobs_with(*words)
    assert numeric_option(SettingResults(jobs)) == place
    draw(tmp_path / "sweep.png", jobs)
    assert len(figures[0].axes) == (1 if place is None else 2)
