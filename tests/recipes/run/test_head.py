"""A head that is fitted as a linear probe refuses options of the loss that it cannot follow."""

import pytest
from composed_configs import composed, error_text

from ftlit import load_backbone
from ftlit.errors import UserError
from ftlit.models.heads import LinearHead
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.console.plan_rows import plan_rows
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.finetune import build, plan_of
from ftlit.recipes.run.head import check_head


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


def test_class_weights_of_a_head_that_is_only_fitted_are_an_error(monkeypatch):
    message = error_text(monkeypatch, "scenario=small_similar", "loss.class_weights=balanced")
    assert message.startswith("loss.class_weights=balanced has no effect on head=linear_probe") and message.endswith("give head=linear")


@pytest.mark.parametrize("head", ["scenario=large_similar", "head=linear"])
def test_class_weights_apply_where_gradients_train(head, tmp_path, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)  # no program composed the config
    cfg = composed("scenario=small_similar", head, "loss.class_weights=balanced", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    run = build(cfg)
    assert run.trains and run.model.loss.weight is not None
    rows = dict(plan_rows(cfg, run.model.backbone, run.data, plan_of(run), [], RunFacts("CPU")))
    assert rows["training"].endswith("class weights balanced, from 0.91 to 1.1")


@pytest.mark.parametrize(("scenario", "accepted"), [("small_similar", False), ("large_similar", True)])
def test_the_linear_probe_that_the_doctor_proposes_is_accepted(scenario, accepted, tmp_path):
    words = (f"scenario={scenario}", "loss.class_weights=balanced", "data.per_class=3", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    (warning,) = plan_of(build(composed(*words, "head=linear"))).warnings
    assert ("head=linear_probe" in warning) == accepted
    if accepted:
        build(composed(*words, "head=linear_probe"))


def test_a_head_with_another_number_of_outputs_is_an_error():
    backbone = load_backbone("glyph", weights=None)
    with pytest.raises(UserError, match=r"returns \(N, 11\), but there are 10 classes: it must return \(N, 10\)"):
        check_head(backbone, LinearHead(backbone.num_features, 11), 10)
