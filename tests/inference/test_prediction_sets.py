"""Prediction sets: their coverage on new examples, thresholds, what a checkpoint holds, and the column that `ftlit predict` prints."""

import csv
import io
import json

import pytest
import torch
from PIL import Image
from test_predict import CLASSES, command, images, save_run  # noqa: F401  (a fixture)

from ftlit import Backbone, InputSpec, UserError, extract_features, load, load_backbone
from ftlit.inference.prediction import Prediction
from ftlit.inference.prediction_sets import KEY, MAX_SCORES, Calibration, calibration_of, own_scores
from ftlit.probes.fitted_head.head_probe import fit_head
from ftlit.probes.layer_probes import LayerProbes


def labelled_logits(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident logits of three classes, and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(number, 3, generator=draw)
    return 3 * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=draw)[:, 0]


def overlapping_images(number: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 2, 2) of three classes that overlap, and labels."""
    labels = torch.arange(number) % 3
    shift = 2 * torch.nn.functional.one_hot(labels, 3)[:, :, None, None] * torch.tensor([[1.0, 0.3], [0.0, 0.0]])
    return torch.randn(number, 3, 2, 2, generator=draw) + shift, labels


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("number", [200, 5000])
def test_sets_hold_the_label_as_often_as_they_say_however_wrong_the_probabilities_are(coverage, number):
    logits, labels = labelled_logits(20_000, 1)
    own = 1 - logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    held = [float((own <= calibration_of(*labelled_logits(number, seed)).threshold(coverage)).double().mean()) for seed in range(2, 22)]
    assert coverage - 0.012 < sum(held) / len(held) < coverage + 0.015


def test_the_threshold_is_the_score_of_rank_n_plus_1_times_coverage():
    scores = Calibration(torch.linspace(0.1, 0.9, 9))
    assert [scores.threshold(share) for share in (0.1, 0.11, 0.9)] == pytest.approx([0.1, 0.2, 0.9])
    assert scores.threshold(0.91) == float("inf")  # of 9 examples none is known to be as unusual as one in 11
    assert Prediction({"a": 0.7, "b": 0.3}).classes_within(scores.threshold(0.91)) == ["a", "b"]


def test_of_many_scores_quantiles_are_kept_that_are_never_too_low():
    logits, labels = labelled_logits(10_001, 0)
    kept, every = calibration_of(logits, labels), (1 - logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]).sort().values
    assert len(kept.scores) == MAX_SCORES
    for coverage in (0.01, 0.5, 0.9, 0.99):
        exact = Calibration(every)
        assert exact.threshold(coverage) - 1e-6 <= kept.threshold(coverage) <= exact.threshold(min(coverage + 0.002, 0.999))


def test_the_refitted_head_has_about_the_coverage_asked_for_on_new_images(tmp_path):
    backbone, shares = Backbone({"top": torch.nn.Flatten()}, InputSpec(size=2)), (0.8, 0.9)
    held = torch.zeros(8, len(shares))
    for seed in range(len(held)):
        draw = torch.Generator().manual_seed(seed)
        (train, of_train), (val, of_val), (new, of_new) = (overlapping_images(number, draw) for number in (90, 30, 2000))
        splits = [extract_features(backbone, [pair], ["top"], cache=tmp_path) for pair in ((train, of_train), (val, of_val))]
        probe = fit_head(LayerProbes(l2=[1.0, 0.1, 0.01]), splits[0], (), ["top"])
        calibration = calibration_of(probe.held_out_logits.logits, probe.held_out_logits.labels)
        with torch.no_grad():
            own = own_scores(probe.refitted(splits, [[], []]).as_head()(new.flatten(1)), of_new)
        held[seed] = torch.tensor([float((own <= calibration.threshold(share)).double().mean()) for share in shares])
    assert held.mean(dim=0).tolist() == pytest.approx(shares, abs=0.03)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the held-out scores .05, .10, ... .95."""
    folder = save_run(tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None))
    file = folder / "checkpoints" / "best.ckpt"
    torch.save({**torch.load(file), KEY: Calibration(torch.linspace(0.05, 0.95, 19)).record()}, file)
    return folder


def test_predict_prints_the_set_of_each_row_and_how_many_have_one_class(run, images, monkeypatch, capsys):  # noqa: F811
    arguments = ("predict", run, "set/own", "set/none.png", "--top", "7", "--coverage", "0.9")
    code, out, err = command(monkeypatch, capsys, *arguments)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1 and list(rows[0])[-3:] == ["set", "sure", "error"] and rows[2]["set"] == rows[2]["sure"] == "" and rows[2]["error"]
    network = load(run)
    for row in rows[:2]:
        prediction = network(images / row["path"])
        expected = [label for label, value in prediction.probabilities.items() if value >= 0.1 - 1e-6]
        assert row["sure"] == ("yes" if len(expected) == 1 else "no")
        assert row["set"].split(" | ") == expected == network.prediction_set(prediction, 0.9)
    several = sum(" | " in row["set"] for row in rows[:2])
    assert err.startswith(f"ftlit: sets of 0.9 coverage: {2 - several} of one class, {several} of several, 0 empty, ")
    sizes = [row["set"].count(" | ") + 1 for row in rows[:2]]
    assert err.splitlines()[0].endswith(f" empty, {sum(sizes) / 2:.2f} classes on average")
    _, out, _ = command(monkeypatch, capsys, *arguments, "--format", "jsonl")
    assert [json.loads(line).get("set") for line in out.splitlines()] == [rows[0]["set"].split(" | "), rows[1]["set"].split(" | "), None]
    _, out, err = command(monkeypatch, capsys, *arguments[:-1], "0.99")
    assert next(csv.DictReader(io.StringIO(out)))["set"].count(" | ") == len(CLASSES) - 1 and "too few held-out examples" in err


def test_the_coverage_that_was_reached_is_the_share_of_labelled_images_whose_set_holds_the_label(run, tmp_path, monkeypatch, capsys):
    for label in CLASSES[:4]:
        (tmp_path / label).mkdir()
        Image.new("RGB", (8, 8), (90, 10, 200)).save(tmp_path / label / "a.png")
    (tmp_path / CLASSES[0] / "none.png").write_text("no image")
    reached = {}
    for share in ("0.5", "0.85", "0.9", "0.99"):
        _, out, err = command(monkeypatch, capsys, "predict", run, tmp_path, "--coverage", share)
        rows = [row for row in csv.DictReader(io.StringIO(out)) if not row["error"]]
        reached[share] = sum(row["true_label"] in row["set"].split(" | ") for row in rows) / 4
        (line,) = [line for line in err.splitlines() if " coverage: " in line]
        assert f"; coverage on the 4 labelled ones {reached[share]:.4f} (95 % interval " in line
    assert reached["0.5"] == 0.0 < reached["0.99"] == 1.0  # the sets of this network have no class, and all


def test_empty_sets_are_counted_and_are_the_first_rows_with_unsure_first(tmp_path, monkeypatch, capsys):
    backbone, photos = load_backbone("glyph", weights=None), tmp_path / "photos"
    folder = save_run(tmp_path / "glyph", backbone)
    for number in range(4):
        (photos / CLASSES[number]).mkdir(parents=True)
        Image.new("RGB", (40, 40), (60 * number, 90, 10)).save(photos / CLASSES[number] / "a.png")
    tops = sorted(load(folder)(path).probability for path in photos.glob("*/*.png"))
    file = folder / "checkpoints" / "best.ckpt"
    torch.save({**torch.load(file), KEY: Calibration(torch.full((19,), 1 - (tops[1] + tops[2]) / 2)).record()}, file)
    arguments = ("predict", folder, photos, tmp_path / "none.png", "--coverage", "0.9")
    _, _, err = command(monkeypatch, capsys, *arguments)
    expected = "the sets of 2 images are empty, because no class is probable enough: look at them yourself"
    assert f"ftlit: {expected} (--unsure-first prints such rows first)\n" in err
    _, out, err = command(monkeypatch, capsys, *arguments[:-2], "--unsure-first", "--coverage", "0.9")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert f"ftlit: {expected}\n" in err and [row["set"] == "" for row in rows[:4]] == [True, True, False, False]
    assert [float(row["probability"]) for row in rows[:4]] == pytest.approx(tops, abs=1e-4)


@pytest.mark.parametrize("coverage", ["0", "1", "90", "nan"])
def test_a_coverage_that_is_no_share_is_a_one_line_error(run, images, monkeypatch, capsys, coverage):  # noqa: F811
    code, out, err = command(monkeypatch, capsys, "predict", run, "set/own", "--coverage", coverage)
    assert code == 2 and not out and err.count("\n") == 1 and f"coverage {coverage}: give a share above 0 and below 1" in err


def test_a_checkpoint_without_scores_and_a_damaged_one_are_one_line_errors(run, tmp_path):
    file, copy = run / "checkpoints" / "best.ckpt", tmp_path / "a.ckpt"
    content = torch.load(file)
    torch.save({name: value for name, value in content.items() if name != KEY}, copy)
    network = load(copy)
    with pytest.raises(UserError, match="need scores of held-out examples, which this checkpoint lacks"):
        network.prediction_set(Prediction({"a": 1.0}))
    for scores in (torch.tensor([2.0]), torch.tensor([]), "none", torch.tensor([float("nan")])):
        torch.save({**content, KEY: {"format": 1, "scores": scores}}, copy)
        with pytest.raises(UserError, match="its calibration holds no scores"):
            load(copy)
