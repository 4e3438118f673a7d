"""The head of a run: the layers that it reads, and the options that a head which is fitted as a linear probe refuses."""

from pathlib import Path

import pytest
import torch
from composed_configs import composed, error_text

from ftlit import load, load_backbone
from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import AUTO_VIEWS
from ftlit.models.heads import COMBINES, LinearHead
from ftlit.recipes.build_run import build, plan_of
from ftlit.recipes.config.hydra_internals import fresh_hydra
from ftlit.recipes.console.plan_rows import plan_rows
from ftlit.recipes.console.run_facts import RunFacts
from ftlit.recipes.run.head import check_head


@pytest.fixture(autouse=True)
def hydra():
    """Initialize Hydra as the command line does, for one test."""
    with fresh_hydra():
        yield


@pytest.mark.parametrize("head", ["scenario=large_similar", "head=linear"])
def test_class_weights_apply_where_gradients_train(head, tmp_path, monkeypatch):
    monkeypatch.setattr("ftlit.recipes.console.plan_rows.choices", dict)  # no program composed the config
    cfg = composed("scenario=small_similar", head, "loss.class_weights=balanced", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    run = build(cfg)
    assert run.trains and run.model.loss.weight is not None
    rows = dict(plan_rows(cfg, run.model.backbone, run.data, plan_of(run), [], RunFacts("CPU")))
    assert rows["training"].endswith("class weights balanced, from 0.91 to 1.1")


@pytest.mark.parametrize("scenario", ["small_similar", "large_similar"])
def test_the_linear_probe_that_the_doctor_proposes_is_accepted(scenario, tmp_path):
    words = (f"scenario={scenario}", "loss.class_weights=balanced", "data.per_class=3", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    (warning,) = plan_of(build(composed(*words, "head=linear"))).warnings
    assert "head=linear_probe" in warning
    build(composed(*words, "head=linear_probe"))


def test_a_head_with_another_number_of_outputs_is_an_error():
    backbone = load_backbone("glyph", weights=None)
    with pytest.raises(UserError, match=r"returns \(N, 11\), but there are 10 classes: it must return \(N, 10\)"):
        check_head(backbone, LinearHead(backbone.num_features, 11), 10)


@pytest.mark.parametrize(
    ("given", "cuts", "widths"),
    [
        ("null", (), [128]),
        ("1", (), [128]),
        ("2", ("layer3", "layer4"), [96, 128]),
        ("99", ("stem", "layer1", "layer2", "layer3", "layer4"), [32, 32, 64, 96, 128]),
        ("[layer3,stem]", ("stem", "layer3"), [32, 96]),
        ("[layer2]", (), [64]),
        ("[-1,-3]", ("layer2", "layer4"), [64, 128]),
    ],
)
def test_a_head_reads_the_given_layers_and_the_backbone_ends_at_the_highest(given, cuts, widths, tmp_path):
    run = build(composed("scenario=small_similar", f"head.cuts={given}", f"paths.run={tmp_path}", f"paths.cache={tmp_path}"))
    head, backbone = run.model.head, run.model.backbone
    assert (head.cuts, head.widths) == (cuts, widths)
    assert backbone.cuts[-1] == (cuts[-1] if cuts else "layer2" if given == "[layer2]" else "layer4")


def test_a_number_of_layers_counts_from_the_cut_of_the_backbone(tmp_path):
    words = ("scenario=small_different", "backbone.cut=layer3", "head.cuts=2", f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    assert build(composed(*words)).model.head.cuts == ("layer2", "layer3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["head.cuts=[layer2]", "backbone.cut=layer3"],
            "head.cuts=['layer2'] and backbone.cut=layer3 both say where the head reads: to read at the layers in "
            "head.cuts, give backbone.cut=null; to read at layer3 and the layer below it, keep backbone.cut and give head.cuts=2",
        ),
        (["head.cuts=[]"], "head.cuts=[] names no layer: give names, such as [layer3,layer4], a count"),
        (["head.cuts=[layer5]"], "no layer 'layer5': did you mean 'layer4'? There are: stem, layer1, layer2, layer3, layer4"),
        (["head.cuts=0"], "head.cuts=0: give a whole number from 1 to"),
        (["head.combine=mean"], "head.combine='mean': "),
        (["cache.views=3"], "data.views=3"),
    ],
)
def test_layers_that_a_head_cannot_read_are_an_error(monkeypatch, words, message):
    assert message in error_text(monkeypatch, "scenario=small_similar", *words)


@pytest.mark.parametrize("combine", COMBINES)
def test_a_fitted_head_on_several_layers_predicts_after_loading_as_in_the_run(combine, tmp_path):
    few = ("data.per_class=5", "data.augment=photo", "data.num_workers=0", "report=false", "trainer.precision=32-true")
    words = (f"head.combine={combine}", "head.cuts=3", *few, f"paths.run={tmp_path}", f"paths.cache={tmp_path}/cache")
    cfg = composed("scenario=small_similar", *words)
    run = build(cfg)
    run.trainer.fit(run.model, run.data)
    run.probe_head.use_refitted(run.model)
    (tmp_path / "checkpoints").mkdir()
    run.trainer.save_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    network, images = load(tmp_path), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.logits(images), run.model.eval()(images))
    assert network.head.cuts == ("layer2", "layer3", "layer4") and run.probe_head.probe.views == AUTO_VIEWS


@pytest.mark.parametrize(
    ("target", "words", "cuts"),
    [
        ("ftlit.models.heads.LinearHead", [], ()),  # trained by gradient descent: the last layer only
        ("ftlit.models.heads.LinearHead", ["head.cuts=[layer3,layer4]"], ("layer3", "layer4")),
        ("test_head.OpenHead", [], ()),
    ],
)
def test_auto_is_for_heads_that_are_fitted(target, words, cuts, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("ftlit.recipes.checks.validate.given", lambda *names: [word for word in words if word.startswith(names)])
    few = (f"head._target_={target}", *words, f"paths.run={tmp_path}", f"paths.cache={tmp_path}")
    head = build(composed("scenario=small_similar", *few)).model.head
    assert head.cuts == cuts if isinstance(head, LinearHead) else head.options == {}


class OpenHead(torch.nn.Linear):
    """A head that takes any options, and would take those of a linear probe."""

    def __init__(self, in_features, num_classes, **options):
        super().__init__(in_features, num_classes)
        self.options = options
