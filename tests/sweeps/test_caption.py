"""The lines below the table of a sweep explain equal rows, and say when jobs are missing."""

import json
from dataclasses import replace

import pytest

from ftlit import UserError
from ftlit.cli import main
from ftlit.cli.sweep import sweep_jobs
from ftlit.report.sweep_page import sweep_page
from ftlit.sweeps import running
from ftlit.sweeps.caption import SAME_NOTE, caption_of, finished
from ftlit.sweeps.jobs import STOPPED, Job, jobs_of, varying
from ftlit.sweeps.plan_file import FILE, SweepPlan, read_plan
from ftlit.sweeps.running import RunningSweep
from ftlit.sweeps.settings_table import markdown_of, table_of

RESUME = "ftlit train -m lr=1,2 seed=1,2 sweep.resume=true"


def made(folder, *results, status=0):
    """Jobs with one swept option and a seed; a result is the test accuracy, or a mapping."""
    for number, result in enumerate(results):
        Job(number, (f"lr={1 + number // 2}", f"seed={1 + number % 2}"), {}, status, "").write(folder / str(number))
        given = result if isinstance(result, dict) else {"test/accuracy": result}
        (folder / str(number) / "result.json").write_text(json.dumps({"val/accuracy": 0.5, "test/accuracy": 0.75, **given}))
    return folder


def jobs_in(folder):
    return [job for _, job in jobs_of(folder)]


def test_an_option_that_jobs_ignored_is_named_with_their_number(tmp_path):
    ignored = {"ignored": ["lr", "loss"]}
    text = caption_of(jobs_in(made(tmp_path, ignored, 0.8, ignored, 0.9)))
    assert (
        "2 of 4 jobs only fit a linear probe, and ignore lr: jobs that differ in it alone have equal results" in text and "loss" not in text
    )
    one_value = caption_of(jobs_in(made(tmp_path / "one", ignored, ignored, 0.8, 0.9)))
    assert "ignore lr" not in one_value  # no two jobs have equal results for this reason
    assert "ignore" not in caption_of(jobs_in(made(tmp_path / "other", {"ignored": ["loss"]}, 0.7, 0.8)))


@pytest.mark.parametrize(("last", "equal"), [(0.6, True), (0.61, False)])
def test_equal_rows_without_a_known_reason_have_a_line(tmp_path, last, equal):
    assert (SAME_NOTE in caption_of(jobs_in(made(tmp_path, 0.5, 0.6, 0.5, last)))) == equal


def test_a_single_row_is_not_compared(tmp_path):
    assert SAME_NOTE not in caption_of(jobs_in(made(tmp_path, 0.5, 0.6)))


def test_an_interrupted_sweep_keeps_its_columns_and_names_the_command_that_resumes_it(tmp_path, capsys):
    SweepPlan(4, ("lr",), RESUME).write(made(tmp_path, 0.5, 0.6))
    jobs = jobs_in(tmp_path)
    assert varying(jobs) == ["lr"] and table_of(jobs)[0][0] == "lr" and finished(jobs) == "2 of 4 jobs have finished"
    assert caption_of(jobs).startswith("Incomplete: 2 of 4 jobs have finished. ") and RESUME in markdown_of(jobs)
    page = sweep_page("mine", jobs_of(tmp_path), None)
    assert "<b>2 of 4 jobs have finished.</b>" in page and RESUME in page
    main.report([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1].endswith(RESUME)


def test_the_jobs_that_have_not_begun_are_named_with_their_values(tmp_path, capsys):
    planned = [[f"lr={lr}", f"seed={seed}"] for lr in (1, 2) for seed in (0, 1)]
    SweepPlan(4, ("lr",), RESUME, planned).write(made(tmp_path, 0.5, 0.6))
    assert caption_of(jobs_in(tmp_path)).startswith(
        "Incomplete: 2 of 4 jobs have finished. 2 jobs have not begun: 2 (lr=2 seed=0), 3 (lr=2 seed=1). "
    )
    main.report([str(tmp_path)])
    assert "2 (lr=2 seed=0), 3 (lr=2 seed=1)" in " ".join(capsys.readouterr().out.split())
    many = [[f"seed={seed}"] for seed in range(20)]
    SweepPlan(20, (), RESUME, many).write(tmp_path)
    assert "18 jobs have not begun: 2 (seed=2), 3 (seed=3), " in caption_of(jobs_in(tmp_path))
    assert "7 (seed=7), ... (18 in all)." in caption_of(jobs_in(tmp_path))


def test_a_halved_sweep_says_how_many_epochs_it_saved(tmp_path):
    plan = SweepPlan(3, ("lr",), RESUME, epochs=9)
    ends = [(STOPPED, 1, 1), (STOPPED, 2, 3), (0, 3, 9)]
    jobs = [Job(i, (f"lr={i}",), status=status, rung=rung, epochs=epochs, sweep=plan) for i, (status, rung, epochs) in enumerate(ends)]
    assert "The jobs trained 13 of the 27 epochs of the full grid (48%), 14 fewer." in caption_of(jobs)
    assert "full grid" not in caption_of([replace(job, sweep=replace(plan, epochs=0)) for job in jobs])
    alone = replace(jobs[0], status=0, rung=0, epochs=0)  # trained to its end by itself
    assert "trained 21 of the 27 epochs" in caption_of([alone, *jobs[1:]])
    for unfinished in ([replace(jobs[0], status=None), *jobs[1:]], jobs[1:]):  # one runs; one has not begun
        assert "full grid" not in caption_of(unfinished)


def test_a_sweep_whose_jobs_have_all_finished_is_not_incomplete(tmp_path, capsys):
    SweepPlan(2, ("lr",), RESUME).write(made(tmp_path, 0.5, 0.6))
    assert "Incomplete" not in markdown_of(jobs_in(tmp_path)) and RESUME not in sweep_page("mine", jobs_of(tmp_path), None)
    (tmp_path / FILE).unlink()  # of an earlier version
    assert finished(jobs_in(tmp_path)) == ""


def test_a_sweep_none_of_whose_jobs_finished_is_incomplete_too(tmp_path):
    SweepPlan(2, ("lr",), RESUME).write(made(tmp_path, 0.5, status=130))
    assert caption_of(jobs_in(tmp_path)).startswith("Incomplete: 0 of 2 jobs have finished. No job")


def test_the_plan_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path):
    plan = SweepPlan(4, ["lr"], RESUME, [["lr=1"]], 9)
    plan.write(tmp_path / "new")
    assert read_plan(tmp_path / "new") == plan and read_plan(tmp_path / "new").jobs == plan.jobs and read_plan(tmp_path) is None
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match=FILE):
        read_plan(tmp_path)


def test_a_sweep_of_which_no_job_began_leaves_no_plan(tmp_path, monkeypatch):
    folder, other = tmp_path / "sweep", tmp_path / "other"
    for own in (folder, other):
        SweepPlan(2, ("lr",), RESUME).write(own)
    (other / "notes.txt").touch()
    monkeypatch.setattr(running, "SWEEPS", {folder: RunningSweep(), other: RunningSweep()})
    sweep_jobs.end_sweep()
    assert not folder.exists() and [path.name for path in other.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("trained", "line"),
    [
        (
            [(0.9, False), (0.9, False)],
            "(val accuracy 0.9000): no epoch was clearly better on val, so this probe is the result of all 2 jobs",
        ),
        ([(0.9, False), (0.8, False)], "(val accuracy 0.8000 to 0.9000)"),
        ([(0.9, False)], "the result of 1 job that trained"),
        ([(0.9, False), (0.9, True)], None),
        ([], None),
    ],
)
def test_the_caption_says_that_no_job_beat_the_linear_probe(trained, line, tmp_path):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        Job(number, (f"x={number}",), status=0, reason="").write(tmp_path / str(number))
        (tmp_path / str(number) / "result.json").write_text('{"val/accuracy": 0.99}')  # of a head that was only fitted
    for number, (accuracy, better) in enumerate(trained):
        result = {"val/accuracy": 1.0 if better else accuracy, "linear_probe/val/accuracy": accuracy, "trained/val/accuracy": 0.5}
        (tmp_path / str(number) / "result.json").write_text(json.dumps(result))
    text = caption_of(jobs_in(tmp_path))
    none_better = "No job beat the linear probe before training"
    assert (none_better in text and line in text) if line else none_better not in text


@pytest.mark.parametrize(("images", "has_note"), [((50, 570), True), ((50, 5000), False), ((400, 400), True)])
def test_a_learning_curve_has_the_real_number_of_training_images(images, has_note):
    """A class of 57 images gives no 500."""
    jobs = [
        Job(place, (f"data.per_class={wanted}",), status=0, metrics={"test/accuracy": 0.5, "train/images": number})
        for place, (wanted, number) in enumerate(zip((5, 500), images, strict=True))
    ]
    header, rows = table_of(jobs)
    assert [row[header.index("training images")] for row in rows] == [f"{number:,}" for number in images]
    assert ("Some classes have fewer images than the largest data.per_class" in caption_of(jobs)) == has_note


@pytest.mark.parametrize(("seeds", "has_note"), [(1, False), (2, True), (3, False)])
def test_an_interval_of_two_seeds_has_a_note(seeds, has_note):
    jobs = [Job(seed, (f"seed={seed}",), status=0, metrics={"val/accuracy": 0.5, "test/accuracy": seed / 10}) for seed in range(seeds)]
    assert ("Two seeds say little" in caption_of(jobs)) == has_note
