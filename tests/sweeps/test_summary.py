"""The table of a sweep is computed from its folder, and written with a figure."""

import csv
import json

import pytest

from ftlit.cli import main
from ftlit.errors import UserError
from ftlit.sweeps.jobs import Job, jobs_of
from ftlit.sweeps.settings_table import DIFFERENCE, markdown_of, table_of
from ftlit.sweeps.sweep_figure import MAX_DRAWN_SETTINGS, draw


def made(folder, *jobs):
    """Write the folder of a sweep with jobs (overrides, result, reason)."""
    for number, (overrides, result, reason) in enumerate(jobs):
        own = folder / str(number)
        own.mkdir(parents=True)
        score = result.get("val/accuracy") if isinstance(result, dict) else None
        Job(number, tuple(overrides.split()), "", 1 if reason else 0, reason, score, 2.0).write(own)
        if result:
            (own / "result.json").write_text(json.dumps(result))
    return folder


def accuracies(val, test):
    return {"val/accuracy": val, "test/accuracy": test}


def jobs_in(folder):
    return [job for _, job in jobs_of(folder)]


def test_each_row_summarizes_a_setting_over_its_seeds_and_the_best_by_val_is_marked(tmp_path):
    low, high = [accuracies(0.5, test) for test in (0.7, 0.8, 0.9)], [accuracies(0.6, 0.1)] * 3
    jobs = [(f"head=a seed={seed}", low[seed], "") for seed in range(3)] + [(f"head=b seed={seed}", high[seed], "") for seed in range(3)]
    header, rows = table_of(jobs_in(made(tmp_path, *jobs)))
    assert header == ["head", "seeds", "test accuracy", "std", "95 % interval", DIFFERENCE, "val accuracy", "job seconds"]
    assert rows == [
        ["a", "3", "0.8000", "0.1000", "0.5516 to 1.0000", "+0.7000 ± 0.2484 †", "0.5000", "2.0"],
        ["b", "3", "0.1000", "0.0000", "-", "-", "0.6000 *", "2.0"],
    ]


def test_where_all_jobs_train_the_best_epoch_decides_and_a_note_counts_the_jobs_that_keep_the_probe(tmp_path):
    probe = {"linear_probe/val/accuracy": 0.9, "linear_probe/test/accuracy": 0.8}
    kept = [accuracies(0.9, 0.8) | probe | {"trained/val/accuracy": trained} for trained in (0.85, 0.88)]
    better = accuracies(0.95, 0.81) | probe | {"trained/val/accuracy": 0.95}
    jobs = [("lr=1", kept[0], ""), ("lr=2", kept[1], ""), ("lr=3", better, "")]
    header, rows = table_of(jobs_in(made(tmp_path / "all", *jobs)))
    place = header.index("val accuracy, best epoch")
    assert [row[place] for row in rows] == ["0.8500", "0.8800", "0.9500 *"]
    note = "In 2 of 3 jobs that train layers, the result, and so the test accuracy, is that of the linear probe"
    assert note in markdown_of(jobs_in(tmp_path / "all"))
    mixed = made(tmp_path / "mixed", *jobs, ("lr=4", accuracies(0.9, 0.9), ""))  # a head that was only fitted
    assert "val accuracy" in table_of(jobs_in(mixed))[0] and note in markdown_of(jobs_in(mixed))
    none = made(tmp_path / "none", ("lr=3", better, ""), ("lr=4", accuracies(0.9, 0.9), ""))
    assert "linear probe" not in markdown_of(jobs_in(none))


def test_the_table_has_the_macro_f1_of_test_where_jobs_have_it(tmp_path):
    jobs = [(f"head=a seed={seed}", accuracies(0.5, 0.7) | {"test/f1": f1}, "") for seed, f1 in enumerate((0.4, 0.6))]
    header, rows = table_of(jobs_in(made(tmp_path, *jobs)))
    assert header[-3:] == ["macro F1", "val accuracy", "job seconds"] and rows[0][-3:] == ["0.5000", "0.5000", "2.0"]


def test_rows_and_the_figure_are_in_the_order_of_the_swept_values_then_of_the_seeds(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    swept = [f"lr={lr} head={head} seed={seed}" for seed in (2, 10, 1) for head in ("mlp", "conv") for lr in ("1e-2", "null", "1e-3", "5")]
    made(tmp_path, *((words, accuracies(number / 100, 0.5), "") for number, words in enumerate(swept)))
    lrs, heads = ("1e-3", "1e-2", "5", "null"), ("mlp", "conv")  # numbers by size, words as they were given
    assert [tuple(row[:2]) for row in table_of(jobs_in(tmp_path))[1]] == [(lr, head) for lr in lrs for head in heads]
    labels = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: labels.extend(figure.axes[0].get_yticklabels()))
    main.report([str(tmp_path)])
    assert [label.get_text() for label in labels] == [f"lr={lr}\nhead={head}" for lr in lrs for head in heads]
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["overrides"] for row in rows] == [f"lr={lr} head={head} seed={seed}" for lr in lrs for head in heads for seed in (1, 2, 10)]
    assert all(row["overrides"] == " ".join(f"{name}={row[name]}" for name in ("lr", "head", "seed")) for row in rows)


def test_settings_that_are_equally_good_are_all_marked_and_a_single_one_is_not(tmp_path):
    made(tmp_path, *((f"x={x}", accuracies(val, 0.5), "") for x, val in enumerate((0.5, 0.9, 0.9))))
    assert [row[-2] for row in table_of(jobs_in(tmp_path))[1]] == ["0.5000", "0.9000 *", "0.9000 *"]
    assert "* marks the best val accuracy." in markdown_of(jobs_in(tmp_path)) and "*" not in markdown_of(jobs_in(tmp_path)[2:])


def test_equal_results_of_all_seeds_have_no_interval_and_a_note(tmp_path):
    made(tmp_path, *((f"x={x} seed={seed}", accuracies(0.5, 0.7 + x * seed / 10), "") for x in (0, 1) for seed in (1, 2)))
    jobs = jobs_in(tmp_path)
    assert [row[4] == "-" for row in table_of(jobs)[1]] == [True, False]
    assert "the same value: nothing in these jobs depends on the seed" in markdown_of(jobs) and "No interval" not in markdown_of(jobs[2:])
    made(tmp_path / "chance", *((f"x=0 seed={seed}", accuracies(0.5 + seed / 10, 0.7), "") for seed in (1, 2)))
    assert "the same value: they are equal by chance" in markdown_of(jobs_in(tmp_path / "chance"))


def test_the_table_and_the_csv_file_show_the_cut_that_each_probe_chose(tmp_path):
    probe = {"held_out/accuracy": 0.5, "test/accuracy": 0.5}
    jobs = [[{**probe, "cut": cut} for cut in cuts] for cuts in (("layer4",), ("layer3", "layer4", "layer3"))]
    made(tmp_path, *((f"data.per_class={size}", result, "") for size, result in zip((5, 10), jobs, strict=True)))
    header, rows = table_of(jobs_in(tmp_path))
    assert header[:2] == ["data.per_class", "cut"] and [row[1] for row in rows] == ["layer4", "layer3, layer4"]
    main.report([str(tmp_path)])
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["cut"] for row in csv.DictReader(file)] == ["layer4", "layer3, layer4"]


def test_a_repeated_seed_counts_once_and_constant_settings_have_no_column(tmp_path):
    same = [("seed=1 lr=2", accuracies(0.5, 0.5), "")] * 3
    header, rows = table_of(jobs_in(made(tmp_path, *same)))
    assert header[0] == "seeds" and rows == [["1", "0.5000", "-", "-", "0.5000", "2.0"]]


def test_the_table_gives_the_reason_of_a_failed_job(tmp_path):
    jobs = jobs_in(
        made(tmp_path, ("x=1 seed=1", accuracies(0.5, 0.4), ""), ("x=1 seed=2", {}, "out of | memory"), ("x=2 seed=1", {}, "no"))
    )
    header, rows = table_of(jobs)
    assert header[-1] == "failed or interrupted" and [row[-1] for row in rows] == ["job 1 (seed=2): out of | memory", "job 2 (seed=1): no"]
    assert rows[0][:3] == ["1", "1", "0.4000"] and rows[1][:3] == ["2", "0", "-"]
    assert "out of \\| memory" in markdown_of(jobs) and "Choosing settings by test accuracy would be biased" in markdown_of(jobs)


def test_the_table_shows_the_mean_of_a_probe_and_the_score_of_a_recipe_without_results(tmp_path):
    draws = [{"held_out/accuracy": 0.5, "test/accuracy": share, "cut": "stem"} for share in (0.2, 0.4)]
    probe = jobs_in(made(tmp_path / "probe", ("seed=1", draws, "")))
    assert probe[0].metrics == pytest.approx({"val/accuracy": 0.5, "test/accuracy": 0.3})
    made(tmp_path / "rates", ("x=1", None, ""), ("x=2", None, ""))
    for number, score in enumerate((0.1, 0.3)):
        Job(number, (f"x={number}",), status=0, reason="", score=score).write(tmp_path / "rates" / str(number))
    header, rows = table_of(jobs_in(tmp_path / "rates"))
    assert header[:3] == ["x", "seeds", "score"] and [(row[0], row[2]) for row in rows] == [("0", "0.1000"), ("1", "0.3000 *")]
    assert "* marks the best score. The score is the number that the recipe returns, higher is better." in markdown_of(
        jobs_in(tmp_path / "rates")
    )
    rates = [Job(number, (f"x={number}",), {"settings": {"recipe": "lr_find"}}, status=0, score=0.1 + number) for number in (0, 1)]
    assert "so a higher one is not better" in markdown_of(rates) and "*" not in markdown_of(rates)


def test_a_shared_reason_of_failed_jobs_is_printed_once(tmp_path):
    failed = [(f"seed={seed}", {}, "no" if seed < 3 else "other") for seed in (1, 2, 3)]
    _, rows = table_of(jobs_in(made(tmp_path, *failed)))
    assert rows[0][-1] == "jobs 0, 1: no\njob 2 (seed=3): other"


def test_the_figure_shows_the_best_settings_and_the_number_of_others(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    titles = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: titles.append((figure.axes[0].get_title(), len(figure.axes[0].get_yticks())))
    )
    for number in (MAX_DRAWN_SETTINGS, MAX_DRAWN_SETTINGS + 7):
        draw(tmp_path / "sweep.png", [Job(i, (f"x={i}",), status=0, score=i / 100) for i in range(number)])
    assert titles == [("", MAX_DRAWN_SETTINGS), (f"the best {MAX_DRAWN_SETTINGS} settings; 7 more are left out", MAX_DRAWN_SETTINGS)]


def test_the_table_is_printed_even_if_a_file_cannot_be_written(tmp_path, capsys):
    made(tmp_path, ("head=a seed=1", accuracies(0.5, 0.4), ""))
    (tmp_path / "sweep.png").mkdir()
    (tmp_path / "sweep.csv").mkdir()
    main.report([str(tmp_path)])
    output = capsys.readouterr()
    assert "0.4000" in output.out and "\nsettings.csv, sweep.md: " in output.out
    assert [line.partition(": ")[2][:13] for line in output.err.splitlines()] == ["no sweep.csv:", "no sweep.png:"]


def test_report_writes_table_and_files_from_the_folder_only(tmp_path, capsys):
    made(tmp_path, ("head=a seed=1", accuracies(0.5, 0.4), ""), ("head=b seed=1", {}, "it broke"))
    main.report([str(tmp_path)])
    output = capsys.readouterr().out
    assert "it broke" in output and "0.4000" in output
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["status"], row["reason"], row["test/accuracy"]) for row in rows] == [
        ("0", "finished", "", "0.4"),
        ("1", "failed", "it broke", ""),
    ]
    assert (tmp_path / "sweep.md").read_text() == markdown_of(jobs_in(tmp_path))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_printed_table_is_at_most_as_wide_as_columns_and_no_line_is_padded(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    made(tmp_path, ("head=a seed=1", accuracies(0.5, 0.4), ""), ("head=b seed=1", {}, "it broke"))
    main.report([str(tmp_path)])
    *table, _, _ = capsys.readouterr().out.splitlines()  # the last lines name files, and are not folded
    assert max(map(len, table)) <= 60 and all(line == line.rstrip() for line in table)


def test_the_table_shows_the_advised_scenario_of_each_setting(tmp_path):
    made(tmp_path, *((f"data.per_class={number} seed={seed}", accuracies(0.5, 0.4), "") for number in (5, 40) for seed in (0, 1)))
    assert "advised" not in table_of(jobs_in(tmp_path))[0]
    for job, scenario in enumerate(("small_similar", "small_similar", "large_similar", "small_similar")):
        (tmp_path / f"{job}/advice.json").write_text(json.dumps({"advice": {"scenario": scenario}}))
    header, rows = table_of(jobs_in(tmp_path))
    assert header[:2] == ["data.per_class", "advised"]
    assert {tuple(row[:2]) for row in rows} == {("5", "small_similar"), ("40", "large_similar, small_similar")}


def test_the_table_shows_the_backbone_that_each_setting_chose(tmp_path):
    own = [{**accuracies(0.5, 0.4), "backbone": name} for name in ("resnet18", "glyph")]
    made(tmp_path, *((f"data.per_class={number} seed=0", result, "") for number, result in zip((5, 40), own, strict=True)))
    header, rows = table_of(jobs_in(tmp_path))
    assert header[:2] == ["data.per_class", "chosen backbone"]
    assert {tuple(row[:2]) for row in rows} == {("5", "resnet18"), ("40", "glyph")}


def test_errors_for_a_missing_empty_or_damaged_sweep_are_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        main.report([str(tmp_path / "none")])
    with pytest.raises(UserError, match="is not that of a run or of a sweep: give "):
        main.report([str(tmp_path)])
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match="is empty, because no job began"):
        main.report([str(tmp_path)])
    made(tmp_path, ("seed=1", {}, "x"))
    (tmp_path / "0/job.json").write_text("{")
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        main.report([str(tmp_path)])


def test_a_sweep_without_a_finished_job_has_no_figure(tmp_path, capsys):
    made(tmp_path, ("seed=1", {}, "it broke"))
    main.report([str(tmp_path)])
    assert "\nsweep.csv, settings.csv, sweep.md: " in capsys.readouterr().out and not (tmp_path / "sweep.png").exists()
