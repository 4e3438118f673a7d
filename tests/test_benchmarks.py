"""Benchmarks: the stored results, the tables, and small runs of the scripts."""

import importlib
import json

import pytest
from paths import ROOT
from PIL import Image

from benchmarks.planted import FAULTS, PEERS
from benchmarks.planted.fault import CAUGHT

pytestmark = pytest.mark.e2e

RESULTS = ROOT / "benchmarks/results/faults.json"
SPLITS = ("train", "val", "test")


def test_the_stored_results_cover_all_peers_and_ftlit_is_never_silent():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert len(rows) >= 12 and {row["fault"] for row in rows} <= set(FAULTS)
    assert all(set(row["verdicts"]) == set(PEERS) for row in rows)
    outcomes = {*CAUGHT, "silent", "crashes", "no such option"}
    assert {verdict["outcome"] for row in rows for verdict in row["verdicts"].values()} <= outcomes
    assert {row["verdicts"]["ftlit"]["outcome"] for row in rows} <= set(CAUGHT)


def test_parameters_of_equal_values_train(tmp_path):
    verdict = FAULTS["equal_values"].run(PEERS["ftlit"](), tmp_path)
    assert (verdict.outcome, verdict.measured) == ("prevented", "4 of 4 tensors train"), verdict.message


def test_the_tables_of_the_pages_are_rendered_from_the_stored_results_and_each_has_one(bench):
    from pages import COMBINED, PAGES, SECTION, rendered

    texts = [page.read_text() for page in PAGES]
    assert [rendered(text) for text in texts] == texts, "run: python benchmarks/pages.py"
    sections = [name for text in texts for _, name, _ in SECTION.findall(text) if name not in COMBINED]
    assert sorted(sections) == sorted(path.stem for path in RESULTS.parent.glob("*.json"))


@pytest.fixture
def bench(monkeypatch):
    """Put benchmarks/ on the import path, as when a script in it runs."""
    monkeypatch.syspath_prepend(RESULTS.parents[1])


def test_scores_of_planted_labels_are_those_of_their_definitions(bench):
    import torch
    from suspects import SCORES, planted

    labels = torch.arange(200) % 4
    given = planted(labels, 4, 0)
    assert int((given != labels).sum()) == 10 and int(given.min()) == 0 and int(given.max()) == 3
    assert torch.equal(given, planted(labels, 4, 0)) and not torch.equal(given, planted(labels, 4, 1))
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.05, 0.85, 0.1], [0.3, 0.4, 0.3], [0.2, 0.8, 0.0], [0.1, 0.2, 0.7]])
    scores = {name: score(probabilities, torch.tensor([0, 0, 0, 1, 2])) for name, score in SCORES.items()}
    assert torch.allclose(scores["self-confidence"], torch.tensor([0.9, 0.05, 0.3, 0.8, 0.7]))
    assert torch.allclose(scores["margin"], torch.tensor([0.8, -0.8, -0.1, 0.6, 0.5]))
    # the thresholds are (1.25 / 3, 0.8, 0.7): only 0.85 of class 1 reaches that of another class
    assert torch.allclose(scores["confident learning"], torch.tensor([2.9, 0.05, 2.3, 2.8, 2.7]))


def test_the_regret_of_a_backbone_is_against_the_one_that_is_best_in_the_mean_of_the_seeds(bench):
    from backbone_choice import regrets

    def row(a, lite, chosen):
        values = {"squeezenet1_1": (a, 0.5, 1), "efficientnet_lite0": (lite, 0.2, 9)}
        candidates = {name: {"accuracy": accuracy, "logme": score, "parameters": size} for name, (accuracy, score, size) in values.items()}
        return {"candidates": candidates, "auto": {"chosen": chosen}, "auto without": {"chosen": "squeezenet1_1"}}

    rows = [row(0.9, 0.8, "squeezenet1_1"), row(0.7, 0.9, "efficientnet_lite0")]
    found = regrets(rows, without=False)
    assert found == pytest.approx({"auto": -0.05, "largest": 0, "best on ImageNet": 0, "LogME": 0.05})
    assert regrets(rows, without=True) == pytest.approx(dict.fromkeys(found, 0))


def test_all_systems_get_the_same_disjoint_splits(bench, tmp_path):
    from quality import split

    for label in ("a", "b"):
        (tmp_path / "given" / label).mkdir(parents=True)
        for name in [f"{i}.png" for i in range(20)] + [".DS_Store"]:
            (tmp_path / "given" / label / name).touch()
    found = []
    for target, seed in (("one", 0), ("again", 0), ("other", 1)):
        split(tmp_path / "given", tmp_path / target, 10, seed)
        parts = {part: {str(p.relative_to(tmp_path / target / part)) for p in (tmp_path / target / part).rglob("*.*")} for part in SPLITS}
        assert [len(parts[part]) for part in SPLITS] == [16, 4, 8] and len(set.union(*parts.values())) == 28
        found.append(parts)
    assert found[0] == found[1] and found[0]["train"] != found[2]["train"] and found[0]["test"] == found[2]["test"]


def test_a_table_shows_failures_and_no_interval_for_a_single_seed(bench):
    from _ledger import summary
    from quality import CELL, table

    cell = {"data": "digits", "per_class": 5, "epochs": None}
    runs = [
        {**cell, "system": "fastai", "seed": 0, "accuracy": 0.9, "seconds": 3.0},
        {**cell, "system": "fastai", "seed": 1, "error": "boom"},
        {**cell, "system": "PyTorch loop", "seed": 0, "error": "boom"},
        *({**cell, "system": "ftlit scenario=auto", "seed": seed, "accuracy": 0.8 + seed / 10, "seconds": 2.0} for seed in (0, 1)),
    ]
    assert table(summary(runs, CELL)).splitlines()[2:] == [
        "| digits, 5, own | 0.850 ± 0.635, 2.0 s | **0.900** (1 failed), 3.0 s | fails |"
    ]


def test_ftlit_is_compared_with_the_best_peer_that_trains_over_the_same_seeds(bench):
    from _ledger import summary
    from quality import CELL, comparison

    def runs(system, seconds, *accuracies, epochs=None):
        cell = {"data": "digits", "per_class": None, "epochs": epochs, "system": system}
        seeds = zip(seconds, accuracies, strict=False)
        return [{**cell, "seed": seed, "seconds": took, "accuracy": accuracy} for seed, (took, accuracy) in enumerate(seeds)]

    ours = runs("ftlit scenario=auto", (2.0, 4.0), 0.8, 0.9)
    peers = [
        *runs("fastai", (8.0, 80.0), 0.5, 0.6),
        *runs("BackboneFinetuning", (9.0, 9.0), 0.2, 0.7),
        *runs("PyTorch loop", (9.0,), 0.9, epochs=5),
    ]
    features = runs("scikit-learn on features", (1.0, 2.0), 0.9, 0.8)
    assert comparison(summary([*ours, *peers, *features], CELL)).splitlines()[2:] == [
        "| digits, all | +0.300 ± 0.000 (fastai) | 0.15 | +0.000 ± 1.271 | 2.00 |"
    ]
    equal = [*runs("ftlit scenario=auto", (2.0, 2.0), 0.8, 0.9, epochs=5), *runs("fastai", (4.0, 4.0), 0.7, 0.8, epochs=5)]
    assert comparison(summary(equal, CELL)).splitlines() == [
        "| ftlit scenario=auto | difference to the best peer that trains | time ratio |",
        "|---|---|---|",
        "| digits, all | +0.100 ± 0.000 (fastai) | 0.50 |",
    ]
    assert comparison(summary([*ours, *equal], CELL)).splitlines()[2:] == ["| digits, all | +0.100 ± 0.000 (fastai) | 0.75 |"]


def test_a_ledger_repeats_failed_runs_and_rejects_runs_of_other_code(bench, tmp_path):
    from _ledger import Ledger

    path = tmp_path / "runs.jsonl"
    ledger = Ledger(path, ("seed",), {"code": "a"})
    ledger.add((0,), {"accuracy": 0.5})
    ledger.add((1,), {"error": "boom"})
    path.write_text(path.read_text() + '{"seed": 2, "accu')
    reopened = Ledger(path, ("seed",), {"code": "a"})
    assert [reopened.is_missing((seed,)) for seed in range(3)] == [False, True, True]
    reopened.add((2,), {"accuracy": 0.7})
    assert not Ledger(path, ("seed",), {"code": "a"}).is_missing((2,))
    with pytest.raises(SystemExit, match="with another code"):
        Ledger(path, ("seed",), {"code": "b"})


def test_steps_alternate_and_the_memory_baseline_is_set_after_everything_is_built(bench, monkeypatch):
    from hardware import sides

    events, optimizer = [], sides.Optimizer
    monkeypatch.setattr(sides, "Optimizer", lambda *args, **kwargs: events.append("optimizer") or optimizer(*args, **kwargs))
    monkeypatch.setattr(sides.Work, "mark_baseline", lambda _: events.append("baseline"))
    found = sides.PAIRS["resnet18"](sides.Work("cpu", 2, 2, 32))
    assert {name: len(seconds) for name, seconds in found.items()} == {"ftlit": 2, "PyTorch loop": 2}
    events.clear()
    for name in ("PyTorch loop", "ftlit"):
        assert len(sides.SIDES[name](sides.Work("cpu", 1, 2, 32))) == 1
    assert events == ["optimizer", "baseline"] * 2


def test_both_sides_of_a_network_pass_are_measured(bench):
    from hardware.passes import rows

    (row,) = rows(["squeezenet1_1"], 1, 1, "cpu")
    assert {name: len(seconds) for name, seconds in row.samples.items()} == {"ftlit": 1, "float32": 1}
    assert row.ratio == row.samples["ftlit"][0] / row.samples["float32"][0]


def test_a_batch_of_8_bits_is_a_quarter_of_one_of_floats(bench, tmp_path):
    from hardware.loading import rows

    for i in range(3):
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / f"{i}.png")
    time, size, *stored = rows(tmp_path, 2, 1, 1)
    assert size.ratio == 0.25 and time.ratio == time.samples["8 bits"][0] / time.samples["floats"][0]
    assert [len(row.samples["stored"]) for row in stored] == [1, 1]


def test_metrics_of_many_classes_are_faster_than_those_of_torchmetrics(bench):
    from hardware.scale import metrics

    row = metrics(1000, 3)
    assert len(row.samples["ftlit"]) == 3 and row.ratio < 0.5


def test_a_row_meets_its_limit_by_its_ratio_or_its_value(bench):
    from _measure import Row
    from pages import within

    assert within(Row("", 9.0, 3.0, 2.9, "<= 3")) and not within(Row("", 1.0, 3.0, 3.1, "<= 3"))
    assert within(Row("", 1.4, None, None, "<= 1.5 s")) and not within(Row("", 14, 16, 14 / 16, ">= 0.9"))


def test_pairs_of_runs_are_compared_seed_by_seed(bench, tmp_path):
    from _ledger import Ledger
    from hardware.pixel_accuracy import differences

    ledger = Ledger(tmp_path / "runs.jsonl", ("data", "seed", "pixels"), {})
    for seed, (stored, files) in enumerate([(0.9, 0.6), (0.7, 0.6), (0.6, None)]):
        ledger.add(("hymenoptera", seed, True), {"accuracy": stored})
        ledger.add(("hymenoptera", seed, False), {"accuracy": files} if files else {"error": "killed"})
    assert "| hymenoptera | 2 | +0.2000 | 1.2706 |" in differences(ledger, 3)


def test_a_failed_round_gives_nan(bench):
    from math import isnan, nan

    from _measure import compared
    from hardware.overhead import in_pairs

    row = compared("", {"a": [1.0, nan, 3.0], "b": [1.0, 2.0, 3.0]}, "a", "b", "")
    assert isnan(row.ratio) and isnan(row.ours) and row.other == 2
    done, failed = {"ftlit": [1.0, 4.0, 3.0], "PyTorch loop": [1.0, 2.0, 4.0]}, {"ftlit": [nan], "PyTorch loop": [nan]}
    assert isnan(in_pairs("", [done, failed], "").ratio) and in_pairs("", [done], "").ratio == 1.0


def test_wrong_options_are_one_line_errors(bench, tmp_path):
    from argparse import ArgumentTypeError

    from _options import count, existing, exit_if_failed, several

    for option, value, message in (
        (several("system", ["fastai", "PyTorch loop"]), "fastai,PyTorch lop", "no system 'PyTorch lop': did you mean 'PyTorch loop'?"),
        (count, "0", "'0' is not a whole number above 0"),
        (existing, str(tmp_path / "none"), "is not a folder"),
    ):
        with pytest.raises(ArgumentTypeError) as error:
            option(value)
        assert message in str(error.value) and "\n" not in str(error.value)
    exit_if_failed([{"accuracy": 1.0}], tmp_path / "log.txt")
    with pytest.raises(SystemExit, match=r"1 of 2 runs failed, the first: boom; see .*log\.txt"):
        exit_if_failed([{"accuracy": 1.0}, {"error": "boom"}], tmp_path / "log.txt")


def test_batch_norm_policies_are_compared_with_live_over_the_same_seeds(bench):
    from _ledger import summary
    from batchnorm import NAMES, table

    def runs(policy, *accuracies):
        cell = {"data": "digits", "shift": "grey", "batch": 2, "batchnorm": policy, "seconds": 1.0}
        return [{**cell, "seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]

    rows = summary([*runs("live", 0.5, 0.7), *runs("frozen", 0.6, 0.8), *runs("affine", 0.9)], NAMES[:-1])
    assert table(rows).splitlines()[2:] == [
        "| digits, grey | `live` | 0.600 ± 1.271 |",
        "| digits, grey | `frozen_stats` |  |",
        "| digits, grey | `frozen` | 0.700 (+0.100 ± 0.000) |",
        "| digits, grey | `affine` | **0.900** |",
    ]


def test_the_starts_of_a_run_are_compared_run_by_run(bench):
    from several_cuts import ONE, SEVERAL, START, table

    rows = [{"cell": f"{name}:4", "seed": 0, START: 0.5, ONE: one, SEVERAL: one + 0.1} for name, one in (("a", 0.6), ("b", 0.8))]
    assert table(rows).splitlines()[2:] == [
        "| a, 4 | 0.500 | 0.600 | 0.700 | +0.100 |",
        "| b, 4 | 0.500 | 0.800 | 0.900 | +0.100 |",
        "| all | 0.500 | 0.700 | 0.800 | +0.100 ± 0.000 |",
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "row"),
    [
        ("probe", "--sizes 100x6x3 --kinds softmax", "| softmax | 100 x 6, 3 classes |"),
        ("extraction.feature_extraction", "--only memory --rows 2000 --batches 4 --rounds 1", "| memory: 4 shuffled batches of 256, "),
        (
            "hardware.device",
            "--networks resnet18 --batches 2 --steps 1 --size 32 --rounds 1",
            "| training: images per second, resnet18, 32-true, batches of 2 |",
        ),
        ("cuts", f"--data {RESULTS.parent} --names digits --draws 1", "| digits, 4 | 0."),
    ],
)
def test_the_other_benchmarks_run(bench, monkeypatch, capsys, name, arguments, row):
    monkeypatch.setattr("sys.argv", [name, *arguments.split()])
    importlib.import_module(name).main()
    assert any(line.startswith(row) for line in capsys.readouterr().out.splitlines())


def test_halving_is_measured_with_its_defaults_on_27_settings_and_takes_at_most_a_third_of_the_steps(bench):
    import halving
    from omegaconf import OmegaConf

    options = OmegaConf.load(ROOT / "conf/hparams_search/halving.yaml").sweep.halving
    assert (options.first, options.eta, options.reduction) == (halving.FIRST, halving.ETA, halving.REDUCTION)
    assert halving.plan()[0].settings == 27 and halving.share_of_steps(halving.plan()) <= 1 / 3
    rows = json.loads((RESULTS.parent / "halving.json").read_text())["rows"]
    assert {row["data"] for row in rows} == set(halving.NAMES) and all(row["verified"] for row in rows if row["seed"] == 0)
