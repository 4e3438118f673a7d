"""The csv files of a sweep with one row per setting and one row per layer of a probe."""

import csv
import json
import re
from statistics import stdev

import pytest

from ftlit.probes.layer_probes import LAYER_COLUMNS
from ftlit.sweeps.jobs import CROSS_VALIDATED, TEST, VAL, Job
from ftlit.sweeps.probe_layers import COLUMNS
from ftlit.sweeps.summary import report


def write(folder, number, overrides, status=0, **metrics):
    """Write the folder of a job."""
    Job(number, tuple(overrides.split()), status=status, reason="", seconds=2.0).write(folder / str(number))
    (folder / str(number) / "result.json").write_text(json.dumps(metrics))
    return folder / str(number)


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for number in range(8):
        (tmp_path / str(number)).mkdir()


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_settings_csv_has_the_unrounded_numbers_of_the_table_and_the_best_by_val(tmp_path):
    for seed, (a, b) in enumerate(((0.7, 0.75), (0.8, 0.75), (0.9, 0.9))):
        write(tmp_path, seed, f"head=a seed={seed}", **{VAL: 0.5, TEST: a})
        write(tmp_path, 3 + seed, f"head=b seed={seed}", **{VAL: 0.6, TEST: b})
    write(tmp_path, 6, "head=a seed=3", status=2)
    report(tmp_path)
    a, b = rows_of(tmp_path / "settings.csv")
    names = ("head", "seeds", "best", "failed", "difference_seeds", "high")
    assert [[row[name] for name in names] for row in (a, b)] == [["a", "3", "0", "1", "3", "1.0"], ["b", "3", "1", "0", "", "1.0"]]
    half = 4.302653 * 0.05 / 3**0.5  # of the differences -0.05, 0.05, 0
    found = [float(a[name]) for name in ("difference", "difference_low", "difference_high")]
    assert found == pytest.approx([0.0, -half, half], abs=1e-6) and b["difference"] == ""
    assert float(a[TEST]) == pytest.approx(0.8) and float(b[VAL]) == pytest.approx(0.6)


def layers_csv(folder, rows):
    """Write `probe_layers.csv` of a job: a row for each (draw, cut, held-out accuracy, test accuracy)."""
    lines = [f"{draw},{cut},softmax,average,0.1,{held_out},1.0,{test},0.1,0.9" for draw, cut, held_out, test in rows]
    (folder / "probe_layers.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def test_probe_layers_csv_has_each_layer_of_each_finished_job(tmp_path):
    first, second, failed = (write(tmp_path, i, f"x={i}", status=status) for i, status in enumerate((0, 0, 2)))
    report(tmp_path)
    assert not (tmp_path / "probe_layers.csv").exists() and not (tmp_path / "settings_layers.csv").exists()  # of other recipes
    layers_csv(first, [(draw, cut, 0.5, 0.6) for draw in "01" for cut in ("layer4", "stem")])
    layers_csv(second, [(0, "stem", "", 0.7)])  # nothing was held out
    layers_csv(failed, [(0, "stem", 0.9, 0.9)])
    report(tmp_path)
    names = ("job", "overrides", "draw", "cut", "accuracy", "test_accuracy", "test_low")
    found = [tuple(row[name] for name in names) for row in rows_of(tmp_path / "probe_layers.csv")]
    layers = [("0", "x=0", draw, cut, "0.5", "0.6", "0.1") for draw in "01" for cut in ("layer4", "stem")]
    assert found == [*layers, ("1", "x=1", "0", "stem", "", "0.7", "0.1")]


def test_settings_layers_csv_has_mean_deviation_and_interval_of_each_layer_over_seeds_and_samples(tmp_path):
    for seed, shares in enumerate(((0.6, 0.7), (0.8, 0.7))):  # of two random samples each
        layers_csv(write(tmp_path, seed, f"x=1 seed={seed}"), [(draw, "stem", 0.5, share) for draw, share in enumerate(shares)])
    layers_csv(write(tmp_path, 2, "x=2 seed=0"), [(0, "stem", "", 0.9), (0, "top", 0.25, 1.0)])
    report(tmp_path)
    one, stem, top = rows = rows_of(tmp_path / "settings_layers.csv")
    assert [(row["x"], row["cut"], row["samples"]) for row in rows] == [
        ("1", "stem", "4"),
        ("2", "stem", "1"),
        ("2", "top", "1"),
    ]
    numbers = [float(one[f"test_accuracy_{name}"]) for name in ("mean", "std", "low", "high")]
    shares = [0.6, 0.7, 0.8, 0.7]
    half = 3.182446 * stdev(shares) / 2  # Student's t with 3 degrees of freedom
    assert numbers == pytest.approx([0.7, stdev(shares), 0.7 - half, 0.7 + half], abs=1e-5)
    assert float(one["accuracy_mean"]) == 0.5 and one["accuracy_low"] == ""  # no interval of equal values
    assert stem["accuracy_mean"] == stem["test_accuracy_std"] == "" and float(top["test_accuracy_mean"]) == 1


def test_the_columns_are_those_that_a_run_writes():
    assert COLUMNS == LAYER_COLUMNS


def test_the_layers_of_one_setting_are_a_table_on_the_console_and_in_sweep_md(tmp_path, capsys):
    for number, accuracy in enumerate((0.5, 0.75)):
        layers_csv(write(tmp_path, number, f"seed={number}"), [(0, "layer4", accuracy, 0.5), (0, "stem", 0.25, 0.125)])
    report(tmp_path)
    text, page = capsys.readouterr().out, (tmp_path / "sweep.md").read_text()
    assert "| layer4 | softmax | average | 2 | 0.6250 | " in page and re.search("stem .* 0.1250", text) and "By layer" not in page + text
    layers_csv(write(tmp_path, 2, "x=1 seed=0"), [(0, "layer4", 0.5, 0.5)])
    report(tmp_path)
    for shown in (capsys.readouterr().out, (tmp_path / "sweep.md").read_text()):
        assert "By layer: settings_layers.csv, and 'Accuracy by layer' in sweep.html." in shown and "stem" not in shown


def test_a_damaged_file_of_layers_is_one_line_and_the_other_files_are_written(tmp_path, capsys):
    (write(tmp_path, 0, "x=0") / "probe_layers.csv").write_text("draw\n0\n")
    report(tmp_path)
    assert "no probe_layers.csv" in capsys.readouterr().err and not (tmp_path / "probe_layers.csv").exists()
    assert (tmp_path / "settings.csv").is_file() and (tmp_path / "sweep.md").is_file()


def test_each_file_of_layers_is_read_once(tmp_path, monkeypatch):
    for number in range(2):
        layers_csv(write(tmp_path, number, f"x={number}"), [(0, "stem", 0.5, 0.5)])
    opened, read = [], csv.DictReader
    monkeypatch.setattr("ftlit.sweeps.probe_layers.csv.DictReader", lambda file: opened.append(file.name) or read(file))
    report(tmp_path)
    assert sorted(opened) == [str(tmp_path / str(number) / "probe_layers.csv") for number in range(2)]


def test_std_and_interval_of_a_single_seed_are_over_its_random_samples(tmp_path):
    own = write(tmp_path, 0, "recipe=probe x=0")
    entry = {"cut": "layer4", "held_out/accuracy": 0.5, "held_out/by": "cross-validation", "held_out/best_of": 5}
    (own / "result.json").write_text(json.dumps([{**entry, TEST: test} for test in (0.6, 0.8, 0.7)]))
    other = write(tmp_path, 1, "recipe=probe x=1")
    (other / "result.json").write_text(json.dumps([{**entry, TEST: 0.6}]))
    report(tmp_path)
    several, single = rows_of(tmp_path / "settings.csv")
    half = 4.302653 * 0.1 / 3**0.5
    assert [float(several[name]) for name in (TEST, "std", "low", "high")] == pytest.approx([0.7, 0.1, 0.7 - half, 0.7 + half], abs=1e-6)
    assert single["std"] == single["low"] == "" and float(several[CROSS_VALIDATED]) == 0.5 and VAL not in several
    text = (tmp_path / "sweep.md").read_text()
    assert "0.1000" in text and "over the random samples of probe.repeats" in text
    assert "cross-validated accuracy, best of 5 probes" in text and "val accuracy" not in text
