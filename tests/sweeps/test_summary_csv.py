"""The csv files of a sweep with one row per setting and one row per layer of a probe."""

import csv
import json

import pytest

from ftlit.sweeps.jobs import TEST, VAL, Job
from ftlit.sweeps.summary import report

HEAD = "draw,cut,kind,pooling,l2,accuracy,loss\n"


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


def test_probe_layers_csv_has_each_layer_of_each_finished_job_at_the_penalty_with_the_lowest_loss(tmp_path):
    first, second, failed = (write(tmp_path, i, f"x={i}", status=status) for i, status in enumerate((0, 0, 2)))
    report(tmp_path)
    assert not (tmp_path / "probe_layers.csv").exists()  # of other recipes
    layers = [(draw, cut) for draw in "01" for cut in ("layer4", "stem")]
    losses = {1: 2.0, 2: 0.5, 3: 1.0}  # by penalty
    tried = [f"{draw},{cut},softmax,average,{l2},0.{draw}{l2},{loss}\n" for draw, cut in layers for l2, loss in losses.items()]
    (first / "probe.csv").write_text(HEAD + "".join(tried))
    (second / "probe.csv").write_text(f"{HEAD}0,stem,softmax,average,1,,\n")  # nothing was held out
    (failed / "probe.csv").write_text(HEAD + tried[0])
    report(tmp_path)
    names = ("job", "overrides", "draw", "cut", "l2", "accuracy")
    found = [tuple(row[name] for name in names) for row in rows_of(tmp_path / "probe_layers.csv")]
    assert found == [*(("0", "x=0", draw, cut, "2", f"0.{draw}2") for draw, cut in layers), ("1", "x=1", "0", "stem", "1", "")]


def test_a_damaged_probe_csv_is_one_line_and_the_other_files_are_written(tmp_path, capsys):
    (write(tmp_path, 0, "x=0") / "probe.csv").write_text("draw\n0\n")
    report(tmp_path)
    assert "no probe_layers.csv" in capsys.readouterr().err and not (tmp_path / "probe_layers.csv").exists()
    assert (tmp_path / "settings.csv").is_file() and (tmp_path / "sweep.md").is_file()
