"""The page of a run with `init_from` shows the rows that the terminal shows: the earlier run, and the differences with their intervals."""

from dataclasses import replace

from report_data import run_data_of

from ftlit.intervals import paired_interval
from ftlit.recipes.console.start_comparison import StartComparison
from ftlit.report.tables import scores

METRICS = {f"{split}/{metric}": 0.5 for split in ("val", "test") for metric in ("accuracy", "f1", "loss")}


def test_the_page_has_the_rows_of_the_terminal_and_known_classes_are_counted_by_themselves():
    compared = StartComparison("mon<day", [True, False, False, True], [True, True, False, False], [True, True, False, True], 0)
    rows, record = compared.rows(), compared.record()
    assert [name for name, *_ in rows] == ["test: mon<day", "difference", "test, known classes (3)", "difference on these"]
    low, high = paired_interval(1, 1, 3)
    assert record["init_from/known/images"] == 3 and rows[3][1:] == ("+0.0000", f"{low:+.3f} to {high:+.3f}")
    text = scores(replace(run_data_of(2), result={**METRICS, **record}))
    for row in rows:
        assert all(cell.replace("<", "&lt;") in text for cell in row)
    assert "difference" not in scores(replace(run_data_of(2), result=METRICS))


def test_without_new_classes_there_are_no_rows_of_known_ones():
    rows = StartComparison("monday", [True, False], [True, True], [True, True], 0).rows()
    assert [name for name, *_ in rows] == ["test: monday", "difference"]
