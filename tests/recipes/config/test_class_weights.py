"""`loss.class_weights`: by name or balanced, in training by gradients, in each fit of a linear probe, in the plan and in the record."""

import pytest
from composed_configs import composed, error_text
from hydra import compose

from ftlit import UserError
from ftlit.recipes import advise, probe
from ftlit.recipes.config.class_weights import class_weights_of, trained_classes
from ftlit.recipes.config.hydra_internals import fresh_hydra, initialize_hydra, instantiate, use_hydra_config
from ftlit.recipes.console.plan_rows import plan_rows
from ftlit.recipes.finetune import _facts, build, plan_of
from ftlit.recipes.resuming.settings import changes, resolved_settings
from ftlit.recipes.run.parts import load_parts

NAMED = "loss.class_weights={9: 3, 0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 0.5}"
NUMBERS = [2.0, *[1.0] * 7, 0.5, 3.0]
FEW = ("data.per_class=4", "data.augment=none", "data.num_workers=0", "report=false", "cache=none")


@pytest.fixture
def words(tmp_path):
    """Initialize Hydra as the command line does; return settings of a small run."""
    with fresh_hydra():
        yield (*FEW, f"paths.run={tmp_path}", f"paths.cache={tmp_path}/cache")


@pytest.mark.parametrize(("given", "weights"), [(NAMED, NUMBERS), ("loss.class_weights=balanced", [1.0] * 10)])
def test_training_by_gradients_has_the_weights_and_records_them(words, given, weights):
    run = build(composed("scenario=large_similar", "head=linear", given, *words))
    assert run.model.loss.weight.tolist() == weights
    assert run.model._record["train_counts"] == [4] * 10 and run.model._record["class_weights"] == weights
    unweighted = build(composed("scenario=large_similar", "head=linear", *words))
    assert unweighted.model.loss.weight is None and unweighted.model._record["class_weights"] is None


@pytest.mark.parametrize("scenario", ["small_similar", "large_similar"])
def test_a_fitted_head_has_the_weights_alone_and_as_the_start_of_training(words, scenario):
    run = build(composed(f"scenario={scenario}", "head=linear_probe", NAMED, *words))
    assert run.probe_head.class_weights == NUMBERS and run.probe_head.trains == (scenario == "large_similar")
    if run.probe_head.trains:
        assert run.model.loss.weight.tolist() == NUMBERS
    else:
        run.trainer.fit(run.model, run.data)
        assert all(part.class_weights == NUMBERS for part in run.probe_head.probe.parts)


def test_balanced_is_passed_on_to_be_counted_where_it_is_used(words):
    run = build(composed("scenario=small_similar", "loss.class_weights=balanced", *words))
    assert run.probe_head.class_weights == "balanced"


def test_the_record_of_a_refitted_head_counts_train_and_val(words):
    cfg = composed("scenario=small_similar", "loss.class_weights=balanced", *words[1:])
    data = load_parts(cfg).data
    counts = [data.counts["train"][name] + data.counts["val"][name] for name in data.class_names]
    found = trained_classes(data, ["train", "val"], class_weights_of(cfg, data))
    assert found["train_counts"] == counts
    assert [number * weight for number, weight in zip(counts, found["class_weights"], strict=True)] == pytest.approx(
        [sum(counts) / 10] * 10
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{0: 2}", "loss.class_weights has no weight for 1, 2, 3, 4, 5, 6, 7, 8, 9: give each class a weight, 1.0 for no change"),
        (NAMED.partition("=")[2].replace("9:", "99:"), "loss.class_weights: there is no class '99': did you mean '9'? There are: 0, 1, 2"),
        (NAMED.partition("=")[2].replace("3,", "many,"), "loss.class_weights has 'many' for the class '9': give a number above 0"),
        (NAMED.partition("=")[2].replace("0.5", "0"), "loss.class_weights.8=0: give a number above 0"),
        ("[1,2]", "loss.class_weights has 2 numbers, but there are 10 classes: give one number for each class, or balanced"),
        ("balance", "loss.class_weights='balance': did you mean balanced?"),
    ],
)
def test_wrong_weights_are_an_error_before_anything_is_read(words, monkeypatch, given, message):
    assert message in error_text(monkeypatch, "scenario=small_similar", f"loss.class_weights={given}", *words)


def test_a_resumed_run_needs_the_same_weights(words):
    before, other, without = (
        resolved_settings(composed("scenario=small_similar", *given, *words)) for given in ([NAMED], [NAMED.replace("3,", "4,")], [])
    )
    assert changes(before, before, {}) == []
    assert [change.name for change in changes(before, other, {})] == ["loss.class_weights.9"]
    assert len(changes(without, before, {})) == 10 and len(changes(before, without, {})) == 10


def test_the_probes_of_every_layer_have_the_weights(words):
    cfg = composed("recipe=probe", "probe.kinds=[softmax,ridge]", "probe.l2=[0.1,0.01]", "probe.cuts=[layer3,layer4]", NAMED, *words)
    found = probe.probe_layers(cfg, instantiate(cfg.probe), load_parts(cfg), "train")
    assert len(found.probes) == 4 and all(one.class_weights == NUMBERS for one in found.probes)
    assert probe.result_of(found, cross_validated=False)["objective"] == found.best.objective


def test_the_advice_is_measured_with_the_weights(tmp_path):
    heavy, total = "loss.class_weights={0: 100000, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1}", []
    for given in ([], [heavy]):
        with initialize_hydra():
            folders = (f"paths.run={tmp_path}", f"paths.cache={tmp_path}/cache")
            cfg = compose("train", ["scenario=large_similar", *FEW, *given, *folders], return_hydra_config=True)
            with use_hydra_config(cfg):
                parts = load_parts(cfg)
                total.append(sum(depth.accuracy for depth in advise.measure(cfg, parts.backbone, parts.data).depths))
    assert total[1] < total[0] - 0.1


def test_weights_do_not_ask_for_full_training(tmp_path):
    for given, requested in (([NAMED], ""), ([NAMED, "loss.label_smoothing=0.1"], "loss.label_smoothing=0.1")):
        with initialize_hydra():
            cfg = compose("train", [*FEW, *given, f"paths.run={tmp_path}"], return_hydra_config=True)
            with use_hydra_config(cfg):
                assert advise._requested(cfg) == requested


def test_the_plan_of_a_fitted_head_names_the_weights_and_does_not_ignore_them(words, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)
    given = [NAMED, "loss.label_smoothing=0.1"]
    monkeypatch.setattr("ftlit.recipes.config.overrides.task_overrides", lambda: given)
    cfg = composed("scenario=small_similar", *given, *words)
    run = build(cfg)
    head = dict(plan_rows(cfg, run.model.backbone, run.data, plan_of(run), [], _facts(cfg, run, plan_of(run), [])))["head"]
    assert ", with class weights from 0.5 to 3; " in head and "so loss.label_smoothing=0.1 is ignored" in head


def test_the_plan_of_a_fitted_head_without_class_weights_does_not_call_them_ignored(words, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)
    monkeypatch.setattr("ftlit.recipes.config.overrides.task_overrides", list)
    cfg = composed("scenario=small_similar", *words)
    run = build(cfg)
    head = dict(plan_rows(cfg, run.model.backbone, run.data, plan_of(run), [], _facts(cfg, run, plan_of(run), [])))["head"]
    assert "so optimizer, lr_scheduler, loss (apart from class_weights) and epochs are ignored" in head


def test_a_custom_loss_has_weights_of_its_own(words):
    cfg = composed("scenario=small_similar", *words)
    data = load_parts(cfg).data
    cfg.loss = {"_target_": "torch.nn.CrossEntropyLoss", "class_weights": "focal"}
    assert class_weights_of(cfg, data) is None
    cfg.loss = {"_target_": "ftlit.finetuning.losses.cross_entropy", "class_weights": "focal"}
    with pytest.raises(UserError, match=r"^loss\.class_weights=focal is not valid"):
        class_weights_of(cfg, data)
