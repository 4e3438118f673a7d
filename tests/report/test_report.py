"""The report of a run: its contents agree with the run, and the page needs no network."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from browser import CHROMIUM, browser_command
from paths import ROOT
from report_data import HOSTILE, run_data_of

from ftlit import UserError
from ftlit.lit.callbacks.recorder import Recorder, predictions_of
from ftlit.report.contents import NEAREST, Pictures, Predictions, StageRecord, SuspectRow
from ftlit.report.html import figures_of, page, write_report
from ftlit.report.load import read
from ftlit.report.picture_grids import GAP, LINE, SIDE, grid, overlaid
from ftlit.report.run_files import (
    FOLDER,
    STAGES,
    SUSPECTS,
    SUSPECTS_DIGEST,
    clear,
    read_metrics,
    read_predictions,
    read_stages,
    read_suspects,
    remove_suspects,
    write_digests,
    write_pictures,
    write_predictions,
    write_run,
    write_stages,
    write_suspects,
)
from ftlit.report.scores import reliability
from ftlit.report.sections import SECTIONS
from ftlit.report.tables import NEAREST_IMAGES

pytestmark = pytest.mark.e2e

FEW = ("data.per_class=5", "scenario=large_similar", "head=linear", "trainer.limit_val_batches=2")
STAGED = (*FEW, "schedule=top_down", "trainer.max_epochs=6", "trainer.log_every_n_steps=1")


def pictures_of(run_data):
    """Name -> files by ending, or why there are none."""
    return dict(figures_of(run_data))


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


def test_the_page_has_all_sections_and_the_accuracy_of_the_run(run):
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
    assert f"{result['test/accuracy']:.4f}" in text and "scenario=large_similar" in text and f"python {ROOT}/train.py" in text
    assert {path.stem for path in (run / "report").glob("*.[jp][pn]g")} == set(sections) - {"plan", "data", "classes"}
    assert f"<td>-</td><td>{result['test/ece']:.4f}</td><td>train</td>" in text  # no interval: validation is limited


def test_the_result_has_the_calibration_error_and_the_splits_of_the_fit(run):
    result = json.loads((run / "result.json").read_text())
    assert result["test/ece"] == pytest.approx(reliability(read(run).predictions)[3], abs=2e-3)  # of probabilities with four digits
    assert (result["val/fitted_on"], result["test/fitted_on"]) == ("train", "train")


def test_the_page_shows_the_interval_of_accuracy_and_the_splits_of_the_fit():
    scores = {f"test/{name}": 0.5 for name in ("accuracy", "f1", "loss")}
    details = {"test/accuracy_low": 0.41, "test/accuracy_high": 0.59, "test/ece": 0.02, "test/fitted_on": "train + val"}
    cells = "<td>0.410 to 0.590</td><td>0.0200</td><td>train + val</td>"
    assert cells in page(replace(run_data_of(3), result={**scores, **details}), {})


def test_test_csv_has_every_test_image_and_the_accuracy_of_the_run(run):
    with (run / "report/test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["item"] for row in rows] == [str(i) for i in range(len(rows))] or len({row["item"] for row in rows}) == len(rows)
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == pytest.approx(json.loads((run / "result.json").read_text())["test/accuracy"], abs=1e-6)


def test_the_recorded_stages_are_those_of_the_plan_with_time_and_memory(run):
    run_data = read(run)
    assert [stage.epoch for stage in run_data.stages] == list(range(6)) and run_data.stages[0].name == "head"
    assert all(stage.seconds > 0 and stage.bytes > 2**26 for stage in run_data.stages)
    assert [row["modes"][-1] for row in run_data.about["layers"]] == ["train"] * 6


def test_two_processes_record_the_same_predictions_in_the_same_order_as_one(run):
    folder = run.parent
    short = (*FEW, "schedule=all_at_once", "trainer.max_epochs=2", "batchnorm=frozen")
    done = train(folder, *short, "trainer=ddp_cpu", "trainer.devices=2", "hydra.run.dir=two")
    one = train(folder, *short, "data.batch_size=64", "hydra.run.dir=one")
    assert done.returncode == one.returncode == 0, done.stderr + one.stderr
    two, alone = (read(folder / name).predictions for name in ("two", "one"))
    assert list(two.items) == list(alone.items) and list(two.labels) == list(alone.labels)
    assert np.abs(two.probability - alone.probability).max() < 5e-3
    features = [read(folder / name).features for name in ("two", "one")]
    assert all(sorted(features[0][part].tolist()) == sorted(features[1][part].tolist()) for part in (1, 2))


def test_predictions_survive_writing_and_reading_with_any_class_names(tmp_path):
    names = ["a|b", "a/b", "", "a | b", 'quo"te\nd', "caf\udce9"]
    labels = [(i,) for i in range(6)]
    predictions = Predictions(["x" * 200_000, "caf\udce9.png", "c", "d", "e", "f"], labels, [*labels[1:], ()], np.linspace(0, 1, 6))
    write_predictions(tmp_path, predictions, names)
    again = read_predictions(tmp_path)
    assert again.labels == labels and again.predicted == predictions.predicted and again.items[1:] == predictions.items[1:]
    assert len(again.items[0]) < 1000 and np.abs(again.probability - predictions.probability).max() < 1e-4


@pytest.mark.parametrize("classes", [3, 30])
def test_the_feature_map_marks_errors_where_they_are_known(classes):
    run_data = run_data_of(classes)
    values, labels, wrong = run_data.features
    draw = SECTIONS["features"].draw
    for given, number in ((wrong, wrong.sum()), (None, 0), (wrong & False, 0)):
        axes = draw(replace(run_data, features=(values, labels, given))).axes[0]
        marks = [points for points in axes.collections if str(points.get_label()).startswith("errors (")]
        assert [len(points.get_offsets()) for points in marks] == ([number] if number else [])


def test_the_page_says_what_the_nearest_images_are_where_it_shows_them():
    run_data = run_data_of(3)
    assert NEAREST_IMAGES not in page(replace(run_data, nearest=None), {})
    text = page(run_data, {"mistakes": {"jpg": b""}})
    assert text.index('id="mistakes"') < text.index(NEAREST_IMAGES) < text.index('alt="Most confident errors"')  # above the images


def test_the_reliability_diagram_shows_the_probabilities_before_and_after_the_temperature(tmp_path):
    run_data = run_data_of(3)
    both = replace(run_data.predictions, uncalibrated=run_data.predictions.probability**2)
    write_predictions(tmp_path, both, list("abc"))
    again = read_predictions(tmp_path)
    assert np.abs(again.uncalibrated - both.uncalibrated).max() < 1e-4
    draw, legends = SECTIONS["calibration"].draw, []
    for predictions in (run_data.predictions, again):
        axes = draw(replace(run_data, predictions=predictions)).axes[0]
        legends.append((axes.get_title(), axes.get_legend_handles_labels()[1]))
    after = legends[0][0].rpartition(" ")[2]
    before = f"{reliability(replace(both, probability=again.uncalibrated))[3]:.3f}"
    assert legends[1][0] == f"expected calibration error {after} ({before} before temperature scaling)"
    assert legends[1][1] == ["perfect calibration", "at the mean probability", "before temperature scaling", "test images"]


def test_bars_of_few_images_are_pale_and_the_page_judges_the_calibration_error():
    run_data = run_data_of(3)
    probability = np.where(np.arange(len(run_data.predictions.items)) < 4, 0.41, 0.95)
    known = replace(run_data, predictions=replace(run_data.predictions, probability=probability))
    bars = SECTIONS["calibration"].draw(known).axes[0].containers
    assert [(bar.get_label(), len(bar)) for bar in bars if bar.get_label().startswith("fewer")] == [("fewer than 5 images", 1)]
    text = page(known, {})
    assert "perfectly calibrated probabilities would have an error of up to" in text and "the error found is not only chance." in text


def test_an_interrupted_write_keeps_the_previous_file_and_a_damaged_file_is_an_error(tmp_path, monkeypatch):
    write_stages(tmp_path, [StageRecord("head", 0, 0)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda path, target: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_stages(tmp_path, [StageRecord("head", 0, 0), StageRecord("all", 1, 5)])
    assert [stage.name for stage in read_stages(tmp_path)] == ["head"]
    (tmp_path / FOLDER / "run.json").write_text('{"class_names": ["a"]}')
    (tmp_path / FOLDER / STAGES).write_text("[{")
    with pytest.raises(UserError, match=r"report/stages\.json is damaged .*: restore it, or train again"):
        read(tmp_path)


def test_a_changed_byte_in_the_table_of_predictions_is_an_error(tmp_path):
    write_predictions(tmp_path, run_data_of(3).predictions, ["a", "b", "c"])
    table = tmp_path / FOLDER / "test.csv"
    content = table.read_bytes()
    table.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError, match=r"test\.csv is damaged"):
        read_predictions(tmp_path)
    (tmp_path / FOLDER / "test.json").unlink()  # it was edited on purpose
    assert read_predictions(tmp_path) is not None


def test_a_changed_digit_in_the_metrics_of_a_run_that_ended_is_an_error(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,step,val/loss\n0,3,0.5\n1,6,0.25\n")
    rows = read_metrics(tmp_path)
    write_digests(tmp_path)
    assert rows[1] == {"epoch": 1, "step": 6, "val/loss": 0.25} and read_metrics(tmp_path) == rows
    table.write_text(table.read_text().replace("0.25", "0.26"))
    with pytest.raises(UserError, match=r"metrics\.csv is damaged \(its content does not match the digest in report/metrics\.json\)"):
        read_metrics(tmp_path)
    clear(tmp_path)  # the run is resumed
    assert read_metrics(tmp_path)[1]["val/loss"] == 0.26


def test_the_recorder_saves_its_stages_in_the_checkpoint(tmp_path):
    before, after = Recorder(tmp_path), Recorder(tmp_path)
    before._stages = [StageRecord("head", 0, 0, 1.5, 7), StageRecord("all", 1, 100, 0.5, 9)]
    after.load_state_dict(before.state_dict())
    assert [(stage.name, stage.step) for stage in after._stages] == [("head", 0), ("all", 100)]


def test_a_run_that_diverged_has_a_page():
    run_data = run_data_of(3)
    probability = run_data.predictions.probability.copy()
    probability[::2] = np.nan
    features = np.full_like(run_data.features[0], np.inf), *run_data.features[1:]
    run_data = replace(run_data, predictions=replace(run_data.predictions, probability=probability), features=features)
    pictures = pictures_of(run_data)
    assert [name for name, picture in pictures.items() if isinstance(picture, str)] == ["features"]
    text = page(run_data, pictures)
    assert "not drawn: " in text and "200 test images have probabilities that are not finite" in text


def test_learning_rates_have_plain_tick_labels_and_missing_rates_cause_no_warning(recwarn):
    from matplotlib import rc_context

    run_data = run_data_of(3)
    with rc_context({"text.parse_math": False}):
        figure = SECTIONS["curves"].draw(run_data)
        figure.canvas.draw()
        ticks = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert "1e−03" in ticks and not any("$" in tick for tick in ticks)
    metrics = [{name: value for name, value in row.items() if not name.startswith("lr-")} for row in run_data.metrics]
    assert SECTIONS["curves"].draw(replace(run_data, metrics=metrics)) and not recwarn.list


def test_a_page_of_twenty_thousand_classes_is_small():
    run_data = run_data_of(20_000, images=3_000)
    assert SECTIONS["confusion"].draw(run_data) is None
    text = page(run_data, {})
    assert len(text) < 2**20 and 'id="matrix"' not in text and "19,500 more" in text


@pytest.mark.parametrize("number", [2, 200])
def test_every_picture_is_drawn_for_two_and_for_two_hundred_classes(number):
    drawn = pictures_of(run_data_of(number))
    assert drawn.keys() == SECTIONS.keys() and all(files.keys() in ({"png"}, {"jpg"}) for files in drawn.values())


def test_a_run_with_few_files_has_a_short_page():
    missing = {"predictions": None, "features": None, "samples": None, "mistakes": None, "suspects": None, "suspected": None}
    empty = replace(run_data_of(3), about={}, metrics=[], stages=[], depths={}, **missing)
    assert all(draw(empty) is None for draw in (section.draw for section in SECTIONS.values()))
    assert re.findall(r'<section id="(\w+)"', page(empty, {})) == ["plan", "data"]


def test_the_nearest_training_images_stand_beside_each_error():
    run_data = run_data_of(3)
    images = np.arange(7 * 4, dtype=np.uint8).reshape(7, 4)[..., None, None, None] * np.ones((2, 2, 3), np.uint8)
    errors = Pictures(images[:, 0], [f"error {place}" for place in range(7)])
    nearest = Pictures(images[:, 1:].reshape(-1, 2, 2, 3), [f"near {place}" for place in range(7) for _ in range(NEAREST)])
    maps = Pictures(errors.images + np.uint8(100), [f"map {place}" for place in range(7)])
    known = replace(run_data, mistakes=errors, nearest=nearest)
    assert shown_values(SECTIONS["mistakes"].draw(known), columns=4, number=28) == list(range(28))
    both = shown_values(SECTIONS["mistakes"].draw(replace(known, maps=maps)), columns=5, number=35)
    assert both[::5] == list(range(0, 28, 4)) and both[1::5] == list(range(100, 128, 4)) and both[2:5] == [1, 2, 3]
    for other in (None, replace(nearest, images=nearest.images[:5])):  # a run without them, and files of two runs
        assert shown_values(SECTIONS["mistakes"].draw(replace(known, nearest=other)), columns=6, number=7) == list(range(0, 28, 4))


def shown_values(drawn, columns, number):
    """The grey value in the middle of each image of a grid whose images have captions of one line."""
    wide, high, rows = SIDE + GAP, SIDE + GAP + LINE + 6, -(-number // columns)
    assert (drawn.width, drawn.height) == (columns * wide + GAP, rows * high)
    middles = [(GAP + SIDE // 2 + wide * (i % columns), high * (i // columns) + high // 2) for i in range(number)]
    return [drawn.getpixel(middle)[0] for middle in middles]


def test_a_long_caption_is_cut_in_its_middle_and_stays_above_its_image():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    long = grid(Pictures(images, ["IMG_" + "x" * 80 + "_17.jpg\nant", "b\nbee"]))
    none = grid(Pictures(images, ["\n", "\n"]))
    changed = np.argwhere((np.asarray(long) != np.asarray(none)).any(axis=2))
    left = changed[changed[:, 1] < GAP + SIDE]
    assert left[:, 1].max() <= GAP + SIDE and left[:, 0].max() < long.height - SIDE - GAP // 2
    gap = np.asarray(long)[:, GAP + SIDE : GAP + SIDE + GAP]
    assert (gap == 255).all()


def test_maps_are_red_where_they_are_positive_and_blue_where_negative():
    image = np.full((1, 40, 40, 3), 200, np.uint8)
    drawn = overlaid(image, np.array([[[2.0, 0.0], [0.0, -1.0]]]))[0].astype(int)
    (r, _, b), (r2, _, b2) = drawn[2, 2], drawn[-3, -3]
    assert r > b + 50 and b2 > r2 + 20 and abs(drawn[0, 0, 0] - drawn[0, 0, 2]) > abs(drawn[-1, -1, 0] - drawn[-1, -1, 2])
    assert (overlaid(image, np.zeros((1, 2, 2))) == image).all()


def test_the_table_of_errors_shows_the_second_class_and_the_probability_of_the_true_one(tmp_path):
    predictions = predictions_of(torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]]), torch.tensor([2, 1]), ["a/1.png", "2.png"])
    probabilities = torch.tensor([2.0, 1.0, 0.0]).softmax(0)
    assert predictions.second.tolist()[0] == 1 and predictions.of_label[0] == pytest.approx(float(probabilities[2]))
    write_predictions(tmp_path, predictions, ["=x", "bee", "cat"])
    again = read_predictions(tmp_path)
    assert again.second.tolist() == predictions.second.tolist() and np.abs(again.of_label - predictions.of_label).max() < 1e-4
    text = page(replace(run_data_of(3), class_names=["ant", "bee", "cat"], predictions=again), {})
    assert "<td>a/1.png</td><td>cat</td><td>ant</td><td>0.6652</td><td>0.0900</td><td>bee</td><td>0.2447</td>" in text
    assert '<a href="report/test.csv">' in text


def test_plots_are_written_as_vectors_too_and_images_as_jpeg_only(tmp_path, monkeypatch):
    monkeypatch.setattr("ftlit.report.html.read", lambda folder: replace(run_data_of(2), folder=tmp_path))
    write_report(tmp_path, plots=["svg", "pdf"])
    kinds = {kind: {path.stem for path in (tmp_path / FOLDER).glob(f"*.{kind}")} for kind in ("png", "svg", "pdf", "jpg")}
    images = {"samples", "mistakes", "suspects"}
    assert kinds["png"] == kinds["svg"] == kinds["pdf"] == SECTIONS.keys() - images and kinds["jpg"] == images
    assert (tmp_path / FOLDER / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_of_a_run_that_trains_says_so_instead_of_a_result():
    run_data = replace(run_data_of(3), result={f"test/{name}": 0.5 for name in ("accuracy", "f1", "loss")})
    assert "<td>0.5000</td>" in page(run_data, {}) and "<td>0.5000</td>" not in page(run_data, {}, "epoch <3>")
    assert '<p class="warning">epoch &lt;3&gt;</p>' in page(run_data, {}, "epoch <3>")


def test_the_page_lists_possibly_mislabelled_examples_or_says_that_there_are_none():
    run_data = replace(run_data_of(3), suspected=None)
    row = SuspectRow("a/7.png", "ant", "bee", 0.0123, 0.9, 4)
    shown = page(replace(run_data, suspects=[row]), {})
    assert "<td>a/7.png</td><td>ant</td><td>bee</td><td>0.0123</td>" in shown and SUSPECTS in shown
    assert "No training images have a label that" in page(replace(run_data, suspects=[]), {})
    assert 'id="suspects"' not in page(replace(run_data, suspects=None), {})


def test_suspects_survive_writing_and_reading_and_a_changed_byte_is_noticed(tmp_path):
    rows = [SuspectRow("caf\udce9, 1.png", 'a"b', "=c", 0.0625, 0.9375, 3), SuspectRow("7", "d\ne", "f", 0.125, 0.875, 7)]
    write_suspects(tmp_path, rows)
    write_digests(tmp_path)
    assert [replace(row, item=rows[i].item, suggested=rows[i].suggested) for i, row in enumerate(read_suspects(tmp_path))] == rows
    assert read_suspects(tmp_path)[0].suggested.endswith("=c") and not read_suspects(tmp_path)[0].suggested.startswith("=")
    whole = (tmp_path / SUSPECTS).read_bytes()
    (tmp_path / SUSPECTS).write_bytes(whole.replace(b"0.06", b"0.07"))
    with pytest.raises(UserError, match="does not match the digest"):
        read_suspects(tmp_path)
    remove_suspects(tmp_path)
    assert read_suspects(tmp_path) is None and [*(tmp_path / FOLDER).iterdir()] == []


def test_the_report_leaves_out_a_file_of_suspects_that_the_user_has_edited(tmp_path, capsys):
    run_data = run_data_of(3)
    write_run(tmp_path, {"class_names": list(run_data.class_names)})
    write_suspects(tmp_path, run_data.suspects)
    write_pictures(tmp_path, "suspected", {"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, ["a"])
    write_digests(tmp_path)
    assert len(read(tmp_path).suspects) == 3 and read(tmp_path).suspected is not None and not capsys.readouterr().out
    lines = (tmp_path / SUSPECTS).read_text().splitlines(keepends=True)
    for edited in ("".join([lines[0], *lines[:0:-1][:-1]]), "item;label\na;b\n"):
        (tmp_path / SUSPECTS).write_text(edited)
        found = read(tmp_path)
        assert found.suspects is None and found.suspected is None
        out = capsys.readouterr().out
        assert out.startswith(f"note: {tmp_path / SUSPECTS} was edited or is damaged (") and out.count("\n") == 1
        (tmp_path / FOLDER / SUSPECTS_DIGEST).unlink(
            missing_ok=True
        )  # without it an edited table is read; the second one has other columns


def test_tables_and_figures_name_the_examples_by_the_noun_of_the_data():
    run_data = run_data_of(3)
    texts = replace(run_data, about={"noun": "texts"}, samples=None, mistakes=None)
    right = replace(texts, predictions=replace(texts.predictions, predicted=texts.predictions.labels))
    lost = replace(texts, predictions=replace(texts.predictions, probability=np.full(400, np.nan)))
    for shown in map(page, (texts, right, lost), ({}, {}, {})):
        assert "test texts" in shown and "test images" not in shown
    axes = [axes for name in ("calibration", "depth") for axes in SECTIONS[name].draw(texts).axes]
    labels = [text for own in axes for text in (own.get_ylabel(), *own.get_legend_handles_labels()[1])]
    assert {"texts", "test texts", "probe accuracy on held-out texts"} <= set(labels) and not any("images" in label for label in labels)
    assert ">test images<" in page(replace(texts, about={}), {})  # a run of an earlier release


def test_names_are_escaped_and_the_page_requests_nothing():
    run_data = run_data_of(3)
    text = page(replace(run_data, about={**run_data.about, "noun": HOSTILE}), {"confusion": {"png": b""}, "mistakes": {"jpg": b""}})
    assert HOSTILE not in text and "<img src=x" not in text
    assert not re.search(r"(src|href)=\"?(https?:|//|file:)", text) and "default-src 'none'" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("number", [3, 200])
def test_in_a_browser_pictures_load_the_table_sorts_and_no_request_is_sent(tmp_path, number):
    run_data = run_data_of(number)
    pictures = pictures_of(run_data)
    script = """<script>addEventListener("load", () => {
        const table = document.querySelector("#classes table"), head = table.querySelectorAll("th")[3];
        const column = () => [...table.tBodies[0].rows].map(row => Number(row.cells[3].textContent));
        const before = column(); head.click(); const down = column(); head.click();
        const order = document.getElementById("order"), pixels = () => document.getElementById("matrix").toDataURL();
        const first = pixels(); order.value = "recall"; order.dispatchEvent(new Event("change"));
        const pictures = [...document.images].map(image => image.naturalWidth);  // the matrix is a canvas
        const found = {pictures, before, down, up: column(), matrix: [first.length, first !== pixels()],
          requests: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"))};
        document.body.innerHTML = ""; document.body.append(JSON.stringify(found)); });</script>"""
    (tmp_path / "page.html").write_text(page(run_data, pictures).replace("</body>", script + "</body>"))
    command = browser_command(tmp_path / "profile", "--dump-dom", (tmp_path / "page.html").as_uri())
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = json.loads(re.search(r"<body>(\{.*?\})</body>", shown, re.DOTALL)[1])
    assert len(found["pictures"]) == len(SECTIONS) - 1 and all(width > 50 for width in found["pictures"])
    assert found["down"] == sorted(found["before"]) and found["up"] == sorted(found["before"], reverse=True)
    assert found["down"] != found["up"]
    assert found["matrix"][0] > 1000 and found["matrix"][1] and found["requests"] == []


def test_the_report_of_a_probe_shows_accuracy_by_depth(run):
    done = train(run.parent, "recipe=probe", "data.per_class=5", "hydra.run.dir=probe")
    assert done.returncode == 0, done.stderr
    sections = re.findall(r'<section id="(\w+)"', (run.parent / "probe/report.html").read_text())
    assert {"depth", "confusion", "mistakes", "features"} <= set(sections) and "curves" not in sections
    run_data = read(run.parent / "probe")
    assert list(run_data.depths["softmax, average"]) == ["stem", "layer1", "layer2", "layer3", "layer4"]


def test_report_false_writes_no_report_and_a_folder_without_one_is_a_one_line_error(run):
    done = train(run.parent, "data.per_class=2", "scenario=small_similar", "report=false", "hydra.run.dir=none")
    assert done.returncode == 0 and not (run.parent / "none/report.html").exists() and not (run.parent / "none/report").exists()
    with pytest.raises(UserError, match="has no report/run") as caught:
        write_report(run.parent / "none")
    assert "\n" not in str(caught.value)


def test_the_page_shows_the_backbones_that_were_compared():
    row = {"name": HOSTILE, "accuracy": 0.9, "standard_error": 0.012, "images": 2000, "images_per_second": 92.34, "bytes": 5_000_000}
    run_data = run_data_of(2)
    about = {**run_data.about, "backbones": {"chosen": HOSTILE, "candidates": [row, {**row, "name": "other"}]}}
    text = page(replace(run_data, about=about), {})
    assert f"<td>{escape(HOSTILE)} *</td><td>0.900 ± 0.012</td><td>2,000</td><td>92.3</td><td>5 MB</td>" in text
    assert "<td>other</td>" in text and "Backbones that were compared" not in page(run_data, {})
