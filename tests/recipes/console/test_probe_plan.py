"""The plan of `recipe=probe` shows what is read, and the length of the features that the probes are fitted on."""

import pytest
from composed_configs import composed
from omegaconf import open_dict

from ftlit.formatting import size_in_words
from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate
from ftlit.recipes.console.probe_plan import fitted_splits, images_read, lengths, limited
from ftlit.recipes.probe import describe, poolings_tried, print_plan, probe_layers, result_of
from ftlit.recipes.run.feature_setup import features_of, specs_of
from ftlit.recipes.run.parts import RunParts, load_parts


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)  # no program composed the config

    def plan(*words):
        with fresh_hydra():
            cfg = composed("recipe=probe", *words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
            probes, parts = instantiate(cfg.probe), load_parts(cfg)
            return cfg, probes, parts, dict(print_plan(cfg, probes, parts, fitted_splits(parts.data, probes)))

    return plan


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ([], {"probe": "5 linear probes (softmax), 25 L2 penalties each; penalty, then layer, kind and pooling chosen on val"}),
        (["data.per_class=3"], {"probe": "chosen by cross-validation on train (val is not used)"}),
        (["data.per_class=3", "probe.repeats=4"], {"probe": ", in each of 4 random samples of 3 images per class"}),
        (["probe=all", "probe.cuts=[layer4]", "probe.l2=[1]"], {"probe": "9 linear probes (softmax, svm, ridge), one L2 penalty;"}),
        (["loss.class_weights=balanced"], {"probe": "balanced"}),
    ],
)
def test_the_plan_says_what_is_fitted_and_how_it_is_chosen(planned, words, texts):
    rows = planned(*words)[-1]
    assert all(text in rows[name] for name, text in texts.items()), rows
    assert {"ftlit", "backbone", "input", "data", "classes", "probe", "cache", "device", "run", "estimate"} <= set(rows)


def test_the_plan_and_the_fit_read_the_same_number_of_images_per_class(planned):
    """Own data may set it without an option of the config."""
    cfg, probes, parts, _ = planned("data.per_class=3")
    with open_dict(cfg):
        del cfg.data.per_class
    rows = dict(print_plan(cfg, probes, parts, fitted_splits(parts.data, probes)))
    assert "chosen by cross-validation on train (val is not used)" in rows["probe"]


def test_a_note_says_how_many_images_are_fitted_on(planned, capsys):
    _, probes, parts, rows = planned("probe.rows=100")
    some = limited(parts.data, probes)
    assert capsys.readouterr().out.splitlines()[-1].startswith("note: probes are fitted on 100 of 1,070 training images")
    assert "because probe.rows=100 leaves others out" in rows["probe"] and "refitted" not in rows["probe"]
    assert set(some.counts["train"].values()) <= {9, 10, 11} and some.counts["test"] == parts.data.counts["test"]


@pytest.mark.parametrize(("rows", "splits"), [("100", "train"), ("all", "train + val")])
def test_probes_are_refitted_on_val_only_where_no_training_image_is_left_out(planned, rows, splits):
    """Else a sweep over probe.rows would compare probes of rows + 359 images."""
    cfg, probes, parts, _ = planned(f"probe.rows={rows}", "probe.cuts=[layer4]", "probe.l2=[1e-1,1e-2]", "data.num_workers=0")
    some = limited(parts.data, probes)
    repeat = probe_layers(cfg, probes, RunParts(parts.backbone, some), fitted_splits(parts.data, probes))
    train, val = (len(some.collection.splits[name]) for name in ("train", "val"))
    assert repeat.fitted_on == splits and repeat.best.samples == train + val * (splits == "train + val")
    result = result_of(repeat, cross_validated=False)
    assert result["test/fitted_on"] == splits and result.get("train/images") == (train if rows == "100" else None)
    said = "on 359 val images, " + (f"fitted on {train} training images" if rows == "100" else "refitted on train + val")
    assert said in describe([repeat], None, "images")


def test_without_a_store_the_plan_promises_no_cache(planned):
    assert "cache" not in planned("cache=none", "data.per_class=2")[-1]


def test_lengths_and_bytes_of_the_plan_are_those_of_the_features(planned, capsys):
    cfg, probes, parts, rows = planned("data.per_class=2", "probe.poolings=[average,2x2]", "probe.cuts=[layer4,stem]", "data.num_workers=0")
    specs = specs_of(parts.backbone, probes.cuts, poolings_tried(probes))
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer4", "128x4x4", "128", "512"] in table and ["stem", "32x32x32", "32", "128"] in table
    with features_of(cfg, parts.backbone, parts.data, probes.cuts, poolings=poolings_tried(probes)) as features:
        found = {split: [own[cut] for own in by_pooling.values() for cut in own.cuts] for split, by_pooling in features.items()}
        widths = sorted(rows.read([0]).shape[1] for rows in found["train"])
        stored = sum(len(rows) * rows.read([0]).shape[1] * 4 for own in found.values() for rows in own)
    assert widths == sorted(lengths(parts.backbone, specs).values())
    assert rows["cache"].startswith(f"features take up to {size_in_words(stored)} in ")
    assert images_read(parts.data, 3) == images_read(parts.data, 1) + 2 * 20
