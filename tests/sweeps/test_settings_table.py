"""The table of settings: the comparison with the best by val, and what a narrow terminal shows."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from ftlit import UserError
from ftlit.cli import main
from ftlit.sweeps.caption import ONE_SEED_NOTE, caption_of
from ftlit.sweeps.jobs import CROSS_VALIDATED, SCORE, TEST, TEST_F1, VAL, Job
from ftlit.sweeps.settings_table import DIFFERENCE, INTERVAL, LEFT_OUT_FIRST, markdown_of, printed_table, table_of

SCENARIOS = ("small_similar", "small_different", "large_similar", "large_different")


def jobs_of_sweep(heads=("linear_probe", "linear"), seeds=3, **fields):
    """Jobs of which the first head is the best by val; its test accuracy is higher by 0.01 with each seed."""
    settings = [(head, scenario) for head in heads for scenario in SCENARIOS]
    return [
        Job(
            len(settings) * seed + place,
            (f"head={head}", f"scenario={scenario}", f"seed={seed}"),
            status=0,
            seconds=12.3,
            metrics={VAL: 0.9 - place / 100, TEST: 0.9 + seed / 50 - place / 100 * (seed + 1), TEST_F1: 0.9},
            **fields,
        )
        for place, (head, scenario) in enumerate(settings)
        for seed in range(seeds)
    ]


def column(jobs, name):
    header, rows = table_of(jobs)
    return [row[header.index(name)] for row in rows]


def printed(jobs, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(printed_table(jobs, width))
    return console.file.getvalue()


def test_each_setting_but_the_best_by_val_has_its_paired_difference():
    cells = column(jobs_of_sweep(), DIFFERENCE)
    assert cells[:2] == ["-", "-0.0200 ± 0.0248"]  # of -0.01, -0.02, -0.03: 4.303 * 0.01 / sqrt(3)
    assert all(cell.startswith("-0.") for cell in cells[1:])


def test_a_difference_is_marked_where_its_interval_leaves_out_zero():
    tests = {"a": (0.90, 0.92, 0.91), "b": (0.80, 0.82, 0.815), "c": (0.95, 0.80, 0.93)}
    jobs = [
        Job(3 * place + seed, (f"head={head}", f"seed={seed}"), status=0, metrics={VAL: 0.9 - place / 10, TEST: value})
        for place, (head, values) in enumerate(tests.items())
        for seed, value in enumerate(values)
    ]
    cells = column(jobs, DIFFERENCE)
    assert [cell.endswith(" †") for cell in cells] == [False, True, False]
    note = "† marks an established difference"
    assert note in markdown_of(jobs) and cells[1] in markdown_of(jobs) and note in " ".join(printed(jobs, 160).split())
    assert note not in caption_of([job for job in jobs if "head=b" not in job.overrides])


def test_any_setting_can_be_compared_with(tmp_path, capsys):
    for job in jobs_of_sweep():
        job.write(tmp_path / str(job.number))
        (tmp_path / str(job.number) / "result.json").write_text(json.dumps(job.metrics))
    folder, before = str(tmp_path), sorted(tmp_path.iterdir())
    main.report([folder, "--against", "head=linear", "scenario=large_different"])  # the last one, the worst
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert table[-1] == ["linear", "large_different", "3", table[-1][3], "-"]
    assert table[0][-1] == "+0.1400 ± 0.1739" and sorted(tmp_path.iterdir()) == before  # of 0.07, 0.14, 0.21
    for words, number in (("head=linear", "4 settings"), ("head=mlp", "no setting")):
        with pytest.raises(UserError, match=f"--against '{words}' matches {number}: give one of these in full: head=l"):
            main.report([folder, "--against", words])
    with pytest.raises(UserError) as caught:
        main.report([folder, "--against", "head=linear"])
    assert "head=linear scenario=" in str(caught.value) and "head=linear_probe" not in str(caught.value)  # only those that match
    with pytest.raises(UserError, match="is a sweep, and two sweeps cannot be compared: give swept values of "):
        main.report([folder, "--against", folder])
    with pytest.raises(UserError, match="--against has no value: give the swept values of"):
        main.report([folder, "--against", ""])
    assert sorted(tmp_path.iterdir()) == before  # no report


def test_a_difference_over_one_seed_has_no_interval_and_is_said_to_be_possible_by_chance():
    jobs = jobs_of_sweep(seeds=1)
    found = column(jobs, DIFFERENCE)
    assert found.count("-") == 1 and not any("±" in cell or "†" in cell for cell in found)
    assert ONE_SEED_NOTE in caption_of(jobs) and ONE_SEED_NOTE not in caption_of(jobs_of_sweep())


def test_there_is_no_column_of_differences_of_one_setting():
    jobs = jobs_of_sweep(heads=("linear",))[:3]
    assert DIFFERENCE not in table_of(jobs)[0] and "Difference to the best" not in caption_of(jobs)


def test_of_equally_good_settings_the_first_is_compared_with():
    jobs = [Job(i, (f"head={head}", f"seed={i % 2}"), status=0, metrics={VAL: 0.5, TEST: i / 10}) for i, head in enumerate("aabb")]
    assert column(jobs, DIFFERENCE) == ["-", "+0.2000"]
    assert "minus that of the first setting with *" in caption_of(jobs)


@pytest.mark.parametrize(("recipe", "high"), [("advise", 1.0), ("pretrain", 1.5853)])
def test_the_interval_of_the_score_is_clipped_where_the_score_is_an_accuracy(recipe, high):
    scores = {0: 0.9, 1: 1.0}
    jobs = [Job(seed, (f"seed={seed}",), {"settings": {"recipe": recipe}}, 0, "", score) for seed, score in scores.items()]
    assert SCORE in table_of(jobs)[0] and column(jobs, INTERVAL)[0].endswith(f" to {high:.4f}")


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_no_word_of_the_printed_table_is_cut_and_the_caption_names_the_columns_that_are_left_out(width):
    jobs = jobs_of_sweep()
    text = printed(jobs, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for words in (*SCENARIOS, "linear_probe", "difference", "0.9000 *", *(row[3] for row in table_of(jobs)[1])):
        assert words in text
    rows = text.partition("└")[0]
    caption = " ".join(text.partition("┘")[2].split())
    left_out = [name for name in LEFT_OUT_FIRST if name.split()[0] not in rows]
    assert ("Left out at this width" in caption) == bool(left_out)
    assert left_out == list(LEFT_OUT_FIRST[: len(left_out)])
    assert not left_out or f"Left out at this width: {', '.join(left_out)} (sweep.md has all columns)." in caption


def test_a_wide_terminal_has_all_columns_and_markdown_at_any_width():
    jobs = jobs_of_sweep()
    header, rows = table_of(jobs)
    wide = printed(jobs, 250)
    assert all(cell in wide for cell in [*header, *(cell for row in rows for cell in row)])
    assert all(name in markdown_of(jobs) for name in header)


def test_a_value_longer_than_the_terminal_is_folded_and_whole():
    value = "photos/" + "x" * 90
    jobs = [Job(i, (f"data.root={root}",), status=0, metrics={VAL: 0.5, TEST: 0.5}) for i, root in enumerate((value, "y"))]
    text = printed(jobs, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(line[2:].partition(" ")[0] for line in text.splitlines() if line.startswith("│")).startswith(value)


@pytest.mark.parametrize(
    ("metrics", "ranking", "note"),
    [
        ([{VAL: 0.5}, {VAL: 0.6}], "val accuracy", "Choosing"),
        ([{VAL: 0.5, "val/best_of": 5}, {VAL: 0.6, "val/best_of": 5}], "val accuracy, best of 5 probes", "Best of 5 probes: "),
        ([{VAL: 0.5, "val/best_of": 5}, {VAL: 0.6, "val/best_of": 9}], "val accuracy, best of 5 to 9 probes", "Best of 5 to 9 probes: "),
        ([{VAL: 0.5, "val/best_of": 1}, {VAL: 0.6, "val/best_of": 1}], "val accuracy", "Choosing"),
        ([{CROSS_VALIDATED: 0.5}, {CROSS_VALIDATED: 0.6}], "cross-validated accuracy", "val is not used (data.per_class)"),
        (
            [{VAL: 0.5}, {CROSS_VALIDATED: 0.6, "cross_validated/best_of": 2}],
            "held-out accuracy, best of 2 probes",
            "on val, and with",
        ),
    ],
)
def test_the_column_that_ranks_says_how_the_accuracy_was_measured_and_of_how_many_probes_it_is_the_best(metrics, ranking, note):
    jobs = [Job(i, (f"x={i}",), status=0, metrics={**own, TEST: 0.5}) for i, own in enumerate(metrics)]
    assert column(jobs, ranking) == ["0.5000", "0.6000 *"]
    assert note in caption_of(jobs) and f"* marks the best {ranking.partition(',')[0]}." in caption_of(jobs)


def test_long_reasons_of_failed_jobs_stand_once_below_the_table_at_its_full_width():
    reason = "CUDA out of memory: " + "give a smaller batch " * 4
    jobs = [
        Job(0, ("x=1", "seed=1"), status=0, metrics={VAL: 0.5, TEST: 0.5}),
        *(Job(i, (f"x={i}", "seed=1"), status=1, reason=reason) for i in (2, 3)),
        Job(4, ("x=4", "seed=1"), status=130, reason="interrupted"),
    ]
    table, _, below = printed(jobs, 140).partition("└")
    assert "CUDA" not in table and "job 2 (seed=1): see below" in table and "job 4 (seed=1): interrupted" in table
    assert below.count("jobs 2, 3: CUDA out of memory") == 1 and "interrupted" not in below
    assert reason in markdown_of(jobs)


def test_no_word_is_cut_beside_the_failed_jobs_either():
    jobs = [replace(job, status=130, reason="interrupted") if job.number == 0 else job for job in jobs_of_sweep()]
    text = printed(jobs, 80)
    rows = text.partition("└")[0]
    assert all(word in rows for word in (*SCENARIOS, "accuracy", "interrupted")) and DIFFERENCE in " ".join(text.split())


def test_the_caption_of_a_narrow_table_has_the_width_of_the_terminal():
    jobs = [Job(i, (f"x={i}",), status=0, metrics={VAL: 0.5, TEST: 0.5}) for i in range(2)]
    lines = printed(jobs, 200).splitlines()
    assert max(map(len, lines[:5])) < 120 < max(map(len, lines[5:])) <= 200
