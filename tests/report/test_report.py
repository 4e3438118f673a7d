"""The report of a run: what it shows is what happened, in one page that asks for nothing."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from paths import ROOT
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_calibration_error

from ftlit import UserError
from ftlit.lit.callbacks.recorder import Recorder, predictions_of
from ftlit.report.contents import Pictures, Predictions, RunData, StageRecord
from ftlit.report.figures import FIGURES
from ftlit.report.html import page, pictures_of, write_report
from ftlit.report.load import read
from ftlit.report.run_files import FOLDER, STAGES, read_predictions, read_stages, write_predictions, write_stages
from ftlit.report.scores import class_scores, confusion, most_confident_errors, reliability

pytestmark = pytest.mark.e2e

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "$x^$ </script><img src=x onerror=alert(1)>"
STAGED = (
    "data.per_class=5", "scenario=large_similar", "head=linear", "schedule=top_down", "trainer.max_epochs=6", "trainer.log_every_n_steps=1",
)  # fmt: skip


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", *arguments]
    environment = {**os.environ, "FTLIT_CACHE": str(folder / "store")}
    return warm.run(command, cwd=folder, env=environment, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    done = train(folder, *STAGED, "hydra.run.dir=run")
    assert done.returncode == 0 and "report: run/report.html" in done.stdout.replace(f"{folder}/", ""), done.stderr + done.stdout
    return folder / "run"


def run_data_of(number: int, images: int = 400) -> RunData:
    """Of a run with so many classes, some of whose names want to be more than names."""
    draw = np.random.default_rng(0)
    names = [f"class {i}" for i in range(number - 1)] + [HOSTILE]
    labels = draw.integers(number, size=images)
    predicted = np.where(draw.random(images) < 0.7, labels, draw.integers(number, size=images))
    tested = Predictions(
        [f"{HOSTILE}/{i}.png" for i in range(images)], [(int(i),) for i in labels], [(int(i),) for i in predicted], draw.random(images)
    )
    shown = Pictures(draw.integers(256, size=(7, 8, 8, 3), dtype=np.uint8), [HOSTILE] * 7)
    stages = [StageRecord("head", 0, 0, 1.5, 2**30), StageRecord(HOSTILE, 1, 10, 2.5, 2**31)]
    layers = [{"layer": layer, "size": 10, "modes": ["eval", "train"]} for layer in ("stem", "head")]
    counts = {split: {name: 3 for name in names} for split in ("train", "val", "test")}
    about = {"title": HOSTILE, "plan": [["ftlit", HOSTILE]], "warnings": [HOSTILE], "layers": layers, "counts": counts}
    metrics = [{"step": float(i), "train/loss": 1 / (i + 1), "val/loss": 1.0, "lr-AdamW/head": 1e-3} for i in range(20)]
    features = draw.normal(size=(60, 5)).astype(np.float32), labels[:60]
    return RunData(Path("run"), about, names, metrics, stages, tested, features, shown, shown, {"ridge": {"stem": 0.5, "top": 0.7}}, {})


def test_the_page_shows_what_happened(run):
    text, result = (run / "report.html").read_text(), json.loads((run / "result.json").read_text())
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == [
        "plan",
        "data",
        "samples",
        "curves",
        "layers",
        "stages",
        "confusion",
        "classes",
        "mistakes",
        "calibration",
        "features",
    ]
    assert f"{result['test/accuracy']:.4f}" in text and "scenario=large_similar" in text and "python train.py" in text
    assert {path.stem for path in (run / "report").glob("*.png")} == set(sections) - {"plan", "data", "classes"}


def test_every_test_image_is_there_in_order_and_the_accuracy_is_that_of_the_run(run):
    with (run / "report/test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == [str(i) for i in range(len(rows))] or len({row["item"] for row in rows}) == len(rows)
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == pytest.approx(json.loads((run / "result.json").read_text())["test/accuracy"], abs=1e-6)


def test_stages_are_those_of_the_plan_and_take_the_time_of_the_run(run):
    run_data = read(run)
    assert [stage.epoch for stage in run_data.stages] == list(range(6)) and run_data.stages[0].name == "head"
    assert all(stage.seconds > 0 and stage.bytes > 2**26 for stage in run_data.stages)
    assert [row["modes"][-1] for row in run_data.about["layers"]] == ["train"] * 6


def test_two_processes_leave_the_same_predictions_in_the_same_order(run):
    folder = run.parent
    done = train(folder, *STAGED, "trainer.max_epochs=6", "trainer=ddp_cpu", "trainer.devices=2", "batchnorm=frozen", "hydra.run.dir=two")
    one = train(folder, *STAGED, "data.batch_size=64", "batchnorm=frozen", "hydra.run.dir=one")
    assert done.returncode == one.returncode == 0, done.stderr + one.stderr
    two, alone = (read(folder / name).predictions for name in ("two", "one"))
    assert list(two.items) == list(alone.items) and list(two.labels) == list(alone.labels)
    assert np.abs(two.probability - alone.probability).max() < 5e-3
    features = [read(folder / name).features for name in ("two", "one")]
    assert sorted(features[0][1].tolist()) == sorted(features[1][1].tolist())


@pytest.mark.parametrize("number", [2, 10])
def test_scores_are_those_of_scikit_learn_and_torchmetrics(number):
    tested = run_data_of(number).predictions
    labels, predicted = ([numbers[0] for numbers in held] for held in (tested.labels, tested.predicted))
    wanted = precision_recall_fscore_support(labels, predicted, labels=range(number), zero_division=0)
    found = [(s.precision, s.recall, s.f1, s.images) for s in class_scores(tested, [str(i) for i in range(number)])]
    np.testing.assert_allclose(np.array(found).T, wanted, atol=1e-12)
    pairs, times = confusion(tested)
    matrix = confusion_matrix(labels, predicted, labels=range(number))
    assert (matrix[*pairs.T] == times).all() and times.sum() == matrix.sum()
    sure, right = torch.tensor(tested.probability), torch.tensor(labels) == torch.tensor(predicted)
    sure = 0.5 + sure / 2  # two classes: the likeliest has half at least
    shares = torch.stack([torch.where(right, sure, 1 - sure), torch.where(right, 1 - sure, sure)], dim=1)
    wanted = multiclass_calibration_error(shares, torch.zeros(len(sure), dtype=torch.long), num_classes=2, n_bins=15)
    assert reliability(replace(tested, probability=sure.numpy()))[3] == pytest.approx(float(wanted), abs=1e-6)


def test_several_labels_are_scored_each_by_itself():
    tested = Predictions(["a", "b", "c"], [(0, 1), (), (1,)], [(0,), (1,), (1,)], np.array([0.9, 0.6, 0.8]))
    first, second = class_scores(tested, ["x", "y"])
    assert (first.precision, first.recall, second.precision, second.recall) == (1.0, 1.0, 0.5, 0.5)


def test_with_several_labels_the_most_confident_error_is_the_label_that_is_most_wrong():
    logits = torch.tensor([[7.0, -0.1], [1.0, 4.0], [9.0, 9.0]])  # x right, y barely missed; y wrongly and surely; both right
    tested = predictions_of(logits, torch.tensor([[1, 1], [1, 0], [1, 1]]), ["a", "b", "c"])
    assert most_confident_errors(tested) == [1, 0] and tested.predicted == [(0,), (0, 1), (0, 1)]
    sure = logits.sigmoid()
    np.testing.assert_allclose(tested.probability, [1 - sure[0, 1], sure[1, 1], sure[2, 0]], rtol=1e-6)


def test_predictions_are_read_as_they_were_written_whatever_the_names(tmp_path):
    names = ["a|b", "a/b", "", "a | b", 'quo"te\nd', "caf\udce9"]
    labels = [(i,) for i in range(6)]
    tested = Predictions(["x" * 200_000, "caf\udce9.png", "c", "d", "e", "f"], labels, [*labels[1:], ()], np.linspace(0, 1, 6))
    write_predictions(tmp_path, tested, names)
    again = read_predictions(tmp_path)
    assert again.labels == labels and again.predicted == tested.predicted and again.items[1:] == tested.items[1:]
    assert len(again.items[0]) < 1000 and np.abs(again.probability - tested.probability).max() < 1e-4


def test_a_write_that_is_cut_leaves_the_file_before_it(tmp_path, monkeypatch):
    write_stages(tmp_path, [StageRecord("head", 0, 0)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, what: (path.open("wb").write(what[:10]), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            write_stages(tmp_path, [StageRecord("head", 0, 0), StageRecord("all", 1, 5)])
    assert [stage.name for stage in read_stages(tmp_path)] == ["head"]
    (tmp_path / FOLDER / "run.json").write_text("{}")
    (tmp_path / FOLDER / STAGES).write_text("[{")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


def test_stages_travel_with_the_checkpoint(tmp_path):
    before, after = Recorder(tmp_path), Recorder(tmp_path)
    before._stages = [StageRecord("head", 0, 0, 1.5, 7), StageRecord("all", 1, 100, 0.5, 9)]
    after.load_state_dict(before.state_dict())
    assert [(stage.name, stage.step) for stage in after._stages] == [("head", 0), ("all", 100)]


def test_a_run_that_diverged_has_its_page():
    run_data = run_data_of(3)
    sure = run_data.predictions.probability.copy()
    sure[::2] = np.nan
    features = np.full_like(run_data.features[0], np.inf), run_data.features[1]
    run_data = replace(run_data, predictions=replace(run_data.predictions, probability=sure), features=features)
    pictures = dict(pictures_of(run_data))
    assert [name for name, picture in pictures.items() if isinstance(picture, str)] == ["features"]
    text = page(run_data, pictures)
    assert "not drawn: " in text and "200 test images have no finite probability" in text


def test_the_rates_are_drawn_with_plain_ticks_and_without_rates_nothing_warns(recwarn):
    from matplotlib import rc_context

    run_data = run_data_of(3)
    with rc_context({"text.parse_math": False}):
        figure = FIGURES["curves"][1](run_data)
        figure.canvas.draw()
        ticks = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert "1e−03" in ticks and not any("$" in tick for tick in ticks)
    metrics = [{name: value for name, value in row.items() if not name.startswith("lr-")} for row in run_data.metrics]
    assert FIGURES["curves"][1](replace(run_data, metrics=metrics)) and not recwarn.list


def test_twenty_thousand_classes_cost_no_more_than_their_images():
    run_data = run_data_of(20_000, images=3_000)
    assert FIGURES["confusion"][1](run_data) is None
    text = page(run_data, {})
    assert len(text) < 2**20 and 'id="matrix"' not in text and "19,500 more" in text


@pytest.mark.parametrize("number", [2, 200])
def test_every_picture_is_drawn_with_two_classes_and_with_two_hundred(number):
    drawn = dict(pictures_of(run_data_of(number)))
    assert drawn.keys() == FIGURES.keys() and all(picture.startswith(b"\x89PNG") for picture in drawn.values())


def test_a_run_that_left_little_has_a_short_page():
    bare = replace(run_data_of(3), about={}, metrics=[], stages=[], predictions=None, features=None, samples=None, mistakes=None, depths={})
    assert all(draw(bare) is None for _, draw in FIGURES.values())
    assert re.findall(r'<section id="(\w+)"', page(bare, {})) == ["plan", "data"]


def test_names_from_outside_are_text_and_the_page_asks_for_nothing():
    text = page(run_data_of(3), {"confusion": b"", "mistakes": b""})
    assert HOSTILE not in text and "<img src=x" not in text
    assert not re.search(r"(src|href)=\"?(https?:|//|file:)", text) and "default-src 'none'" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("number", [3, 200])
def test_in_a_browser_pictures_load_the_table_sorts_and_no_request_leaves(tmp_path, number):
    run_data = run_data_of(number)
    pictures = dict(pictures_of(run_data))
    script = """<script>addEventListener("load", () => {
        const table = document.querySelector("#classes table"), head = table.querySelectorAll("th")[3];
        const column = () => [...table.tBodies[0].rows].map(row => Number(row.cells[3].textContent));
        const before = column(); head.click(); const down = column(); head.click();
        const order = document.getElementById("order"), pixels = () => document.getElementById("matrix").toDataURL();
        const first = pixels(); order.value = "recall"; order.dispatchEvent(new Event("change"));
        const pictures = [...document.images].map(image => image.naturalWidth);  // the matrix is no picture
        const told = {pictures, before, down, up: column(), matrix: [first.length, first !== pixels()],
          requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"))};
        document.body.innerHTML = ""; document.body.append(JSON.stringify(told)); });</script>"""
    (tmp_path / "page.html").write_text(page(run_data, pictures).replace("</body>", script + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    told = json.loads(re.search(r"<body>(\{.*?\})</body>", shown, re.DOTALL)[1])
    assert len(told["pictures"]) == len(FIGURES) - 1 and all(width > 50 for width in told["pictures"])
    assert told["down"] == sorted(told["before"]) and told["up"] == sorted(told["before"], reverse=True) and told["down"] != told["up"]
    assert told["matrix"][0] > 1000 and told["matrix"][1] and told["requests"] == []


def test_a_probe_has_a_report_too_with_accuracy_by_depth(run):
    done = train(run.parent, "recipe=probe", "data.per_class=5", "hydra.run.dir=probe")
    assert done.returncode == 0, done.stderr
    sections = re.findall(r'<section id="(\w+)"', (run.parent / "probe/report.html").read_text())
    assert {"depth", "confusion", "mistakes", "features"} <= set(sections) and "curves" not in sections
    run_data = read(run.parent / "probe")
    assert list(run_data.depths["softmax, average"]) == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_report_false_leaves_none_and_a_folder_without_one_is_one_line(run):
    done = train(run.parent, "data.per_class=2", "scenario=small_similar", "report=false", "hydra.run.dir=none")
    assert done.returncode == 0 and not (run.parent / "none/report.html").exists() and not (run.parent / "none/report").exists()
    with pytest.raises(UserError, match="is not the folder of a run with a report") as caught:
        write_report(run.parent / "none")
    assert "\n" not in str(caught.value)
