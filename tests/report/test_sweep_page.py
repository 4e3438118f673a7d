"""The page of a sweep: its jobs in words, established differences, links to the reports, and nothing from outside that acts."""

import json
import re

import pytest
from report_data import HOSTILE

from ftlit.report.sweep_page import sweep_page, write_sweep_page
from ftlit.sweeps.caption import ESTABLISHED_NOTE
from ftlit.sweeps.jobs import Job, jobs_of


def made(folder, scores):
    """The folder of a sweep: setting -> test accuracy by seed."""
    number = 0
    for setting, values in scores.items():
        for seed, value in enumerate(values):
            own = folder / str(number)
            own.mkdir(parents=True)
            Job(number, (f"lr={setting}", f"seed={seed}"), {}, 0, "", value, 2.0).write(own)
            (own / "result.json").write_text(json.dumps({"val/accuracy": value, "test/accuracy": value}))
            number += 1
    return folder


def bold(text):
    return re.findall(r"<td><b>(.*?)</b></td>", text)


def test_a_difference_is_bold_where_its_interval_leaves_out_zero(tmp_path):
    made(tmp_path, {"1": [0.90, 0.92, 0.91], "2": [0.80, 0.82, 0.815], "3": [0.95, 0.80, 0.93]})
    text = sweep_page("mine", jobs_of(tmp_path), None)
    assert len(bold(text)) == 1 and bold(text)[0].startswith("-0.09") and ESTABLISHED_NOTE in text
    equal = made(tmp_path / "equal", {"1": [0.90, 0.92], "2": [0.89, 0.93]})
    assert bold(sweep_page("mine", jobs_of(equal), None)) == [] and ESTABLISHED_NOTE not in sweep_page("mine", jobs_of(equal), None)


def test_each_job_is_listed_with_its_state_in_words_and_a_link_to_its_report(tmp_path):
    made(tmp_path, {"1": [0.9, 0.8]})
    (tmp_path / "0" / "report.html").touch()
    for number, status in ((2, 1), (3, 130), (4, None)):
        Job(number, ("lr=2", f"seed={number}"), {}, status, HOSTILE).write(tmp_path / str(number))
    text = write_sweep_page(tmp_path).read_text()
    assert '<a href="0/report.html">0</a>' in text and 'href="1/' not in text
    assert "5 jobs: 2 finished, 1 failed, 1 interrupted, 1 did not end" in text
    assert HOSTILE not in text and "<img src=x" not in text


def test_a_sweep_of_probes_has_a_table_by_layer(tmp_path):
    assert 'id="layers"' not in sweep_page("mine", jobs_of(made(tmp_path / "trained", {"1": [0.9]})), None)
    made(tmp_path, {"1": [0.9, 0.8], "2": [0.7]})
    for number, accuracies in enumerate(([0.5, 0.75], [0.625, 0.75], [0.25, HOSTILE])):
        rows = [f"0,layer{place},softmax,average,0.1,{value},0.3,,," for place, value in enumerate(accuracies) if value != HOSTILE]
        header = "draw,cut,kind,pooling,l2,accuracy,loss,test_accuracy,test_low,test_high"
        (tmp_path / str(number) / "probe_layers.csv").write_text("\n".join([header, *rows]))
    text = sweep_page("mine", jobs_of(tmp_path), None)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in text.partition('id="layers"')[2].partition('id="jobs"')[0].split("<tr>")]
    assert [row[:6] for row in cells if row] == [
        ["1", "layer0", "softmax", "average", "2", "0.5625"],
        ["1", "layer1", "softmax", "average", "2", "0.7500"],
        ["2", "layer0", "softmax", "average", "1", "0.2500"],
    ]
    assert [row[6:] for row in cells if row][1:] == [["-", "-", "-"], ["-", "-", "-"]] and " to " in cells[2][6]


@pytest.mark.parametrize("figure", [None, b"png"])
def test_the_figure_is_inside_the_page(tmp_path, figure):
    text = sweep_page("mine", jobs_of(made(tmp_path, {"1": [0.9]})), figure)
    assert ('id="figure"' in text) == (figure is not None) and not re.search(r"(src|href)=\"?(https?:|//|file:)", text)
