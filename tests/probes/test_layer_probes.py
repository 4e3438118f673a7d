"""Probes at every layer: chosen on val, evaluated once on test, and the same table from stored features."""

import csv
import json
import os
import sys

import pytest
import torch
import warm
from paths import ROOT

from ftlit import FineTuner, UserError, extract_features, fit_probe, load_backbone
from ftlit.probes.layer_probes import Interval, LayerProbes, best_of, bootstrap, draw
from ftlit.probes.linear_probe import Probe


def split(count: int, seed: int, folder):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 3, 32, 32, generator=generator) + 0.3 * labels[:, None, None, None]
    return extract_features(load_backbone("glyph"), [(images, labels)], ["layer1", "layer4"], cache=folder)


def test_each_cut_and_kind_has_a_probe_equal_to_that_of_fit_probe_highest_cut_first(tmp_path):
    train, valid = split(30, 0, tmp_path), split(12, 1, tmp_path)
    probes = LayerProbes(kinds=["svm", "softmax"], l2=[1.0, 1e-2]).at({"average": train}, {"average": valid})
    assert [(probe.cut, probe.kind) for probe in probes] == [
        ("layer4", "softmax"), ("layer4", "svm"), ("layer1", "softmax"), ("layer1", "svm"),
    ]  # fmt: skip
    for probe in probes:
        alone = fit_probe(train, cut=probe.cut, kind=probe.kind, l2=[1.0, 1e-2], valid=valid)
        assert alone.weight.equal(probe.weight) and alone.scores == probe.scores
    best = best_of(probes)
    assert best is next(probe for probe in probes if probe.score == max(other.score for other in probes))


@pytest.mark.parametrize("pooling", ["average", "max", "2x2"])
def test_a_probe_of_each_pooling_gives_the_same_logits_inside_the_network(pooling):
    backbone = load_backbone("glyph").eval()
    images, labels = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    with torch.no_grad():
        maps = backbone(images)
        vectors = backbone.pool(maps, pooling)
        probe = fit_probe(vectors, labels, l2=1e-2, pooling=pooling)
        model = FineTuner(backbone, probe.as_head(), num_classes=3, optimizer=torch.optim.SGD).eval()
        assert torch.allclose(model(images), probe.logits(vectors), atol=1e-4)


def test_the_interval_equals_that_of_a_bootstrap():
    right = torch.arange(200) % 10 != 0
    found = bootstrap(right, 0)
    generator = torch.Generator().manual_seed(1)
    means = torch.stack([right[torch.randint(200, (200,), generator=generator)].double().mean() for _ in range(4000)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert found.share == 0.9 and found.low == pytest.approx(low, abs=0.006) and found.high == pytest.approx(high, abs=0.006)
    assert bootstrap(right, 0) == found and str(Interval(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"
    assert bootstrap(torch.ones(9, dtype=torch.bool), 0) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poolings": ["mux"]}, "did you mean 'max'"),
        ({"kinds": ["svn"]}, "did you mean 'svm'"),
        ({"kinds": []}, r"probe.kinds=\[\]: give at least one of softmax, svm, ridge"),
        ({"cuts": []}, r"probe.cuts=\[\]: give at least one cut"),
        ({"l2": [0.0]}, "probe.l2="),
        ({"rows": 0}, "probe.rows=0: give a whole number, 1 or more, or all"),
        ({"rows": "most"}, "probe.rows=most: give a whole number, 1 or more, or all"),
    ],
)
def test_invalid_settings_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        LayerProbes(**options)


def probe(folder, *arguments, **environment):
    command = [sys.executable, str(ROOT / "train.py"), "recipe=probe", "trainer=cpu", f"hydra.run.dir={folder}/run", *arguments]
    return warm.run(command, cwd=folder, env={**os.environ, **environment}, timeout=300)


@pytest.mark.e2e
def test_the_recipe_prints_a_row_per_layer_and_writes_table_figure_and_result(tmp_path):
    first, again = (probe(tmp_path, "probe.l2=[1e-1,1e-3]", FTLIT_CACHE=str(tmp_path / "store")) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "1,797 computed" in first.stdout and "all read from the cache" in again.stdout
    table = [line for line in first.stdout.splitlines() if line.startswith(("│", "*"))]
    assert table == [line for line in again.stdout.splitlines() if line.startswith(("│", "*"))]
    assert [row.split()[1:4] for row in table[:2]] == [["layer4", "│", "average,"], ["layer3", "│", "average,"]]
    assert [row.split()[1] for row in table[:-1]] == ["layer4", "layer3", "layer2", "layer1", "stem"]
    (result,) = json.loads((tmp_path / "run" / "result.json").read_text())
    with (tmp_path / "run" / "probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and max(float(row["accuracy"]) for row in rows) == pytest.approx(result["held_out/accuracy"])
    assert first.stdout.index("probe  ") < first.stdout.index("estimate") < first.stdout.index("┏")  # the plan comes first
    assert result["low"] <= result["test/accuracy"] <= result["high"] and result["test/accuracy"] > 0.97
    with (tmp_path / "run" / "probe_layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    assert [row["cut"] for row in layers] == ["layer4", "layer3", "layer2", "layer1", "stem"]
    assert all(float(row["test_low"]) <= float(row["test_accuracy"]) <= float(row["test_high"]) for row in layers)
    (chosen,) = [row for row in layers if row["cut"] == result["cut"]]
    assert [float(chosen[name]) for name in ("accuracy", "test_accuracy", "test_low", "test_high")] == [
        *(result[name] for name in ("held_out/accuracy", "test/accuracy", "low", "high"))
    ]
    assert (result["held_out/by"], result["held_out/best_of"]) == ("val", 5)
    assert (tmp_path / "run" / "probe.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.e2e
def test_repeats_draw_several_training_sets_and_never_train_on_val(tmp_path):
    output = probe(tmp_path, "data.per_class=5", "probe.repeats=3", "probe.l2=[1e-1,1e-3]", "probe.cuts=[layer4,layer3]").stdout
    results = json.loads((tmp_path / "run" / "result.json").read_text())
    shares = [result["test/accuracy"] for result in results]
    assert len(shares) == 3 and len(set(shares)) > 1 and all(0.7 < share < 0.97 for share in shares)
    mean, spread = sum(shares) / 3, float(torch.tensor(shares, dtype=torch.float64).std())
    assert {(result["held_out/by"], result["held_out/best_of"]) for result in results} == {("cross-validation", 2)}
    assert f"mean test accuracy of the chosen probes {mean:.4f} ± {spread:.4f}" in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("│")] == ["layer4", "layer3"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe.repeats=2"], "also give data.per_class=..., the number of examples per class"),
        (["data.per_class=1"], "every class has only one example"),
        (["data.per_class=1", "probe.l2=[1e-2]"], "no examples are held out to choose between probes: give more examples, or a single"),
        (["probe.repeats=0"], "probe.repeats=0"),
        (["probe.poolings=[mux]"], "did you mean 'max'"),
        (["probe.l2=[high]"], "probe.l2[0]='high': give a number"),
        (["probe.cuts=layer4"], "give a list, such as [layer4]"),
        (["probe.cuts=[layr4]"], "did you mean 'layer4'"),
        (["probe=svn"], "svm"),
        (["resume=true"], "recipe=probe cannot be resumed: leave resume=true out"),
        (["trainer=ddp_cpu", "trainer.devices=2"], "recipe=probe runs in one process"),
    ],
)
def test_user_errors_are_one_line(tmp_path, arguments, message):
    result = probe(tmp_path, *arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_a_plot_supports_any_number_of_kinds(tmp_path):
    def fitted(kind, cut):
        weight = torch.zeros(2, 3)
        return Probe(weight, torch.zeros(2), kind, 0.1, 20, 0.5, 0.0, True, [cut], [weight.shape[1]], "average", {0.1: 0.9}, {0.1: 0.3})

    probes = [fitted(f"kind{i}", cut) for i in range(11) for cut in ("layer2", "layer1")]
    draw(tmp_path / "probe.png", ["layer1", "layer2"], [probes], [(probes[0], Interval(0.9, 0.8, 1.0))], "eleven kinds")
    assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"
