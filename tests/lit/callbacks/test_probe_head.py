"""A head that is solved before training: the probe's weights, once, in every process, and never on resume."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import nn

from ftlit import (
    Backbone,
    FeatureData,
    FineTuner,
    FitProbeHead,
    ImageData,
    InputSpec,
    Schedule,
    Stage,
    StagedFinetuning,
    UserError,
    fit_probe,
)
from ftlit.data.dataset import Collection, Examples
from ftlit.finetuning.schedule import without_warm_up
from ftlit.models.heads import LinearHead, MLPHead
from ftlit.probes.layer_probes import LayerProbes

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
L2_PENALTIES = [1e-1, 1e-3]


def picture(i: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(i * 11).resize((8, 8)).convert("RGB")


def data(labels=lambda i: (i % 3,), **how) -> ImageData:
    splits = {split: Examples(range(n), [labels(i) for i in range(n)], picture) for split, n in (("train", 30), ("val", 6), ("test", 6))}
    multilabel = isinstance(labels(0), list)
    return ImageData(Collection(splits, list("abc"), multilabel), InputSpec(size=8), batch_size=8, num_workers=0, augment="photo", **how)


def model(head: nn.Module | None = None) -> FineTuner:
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Conv2d(3, 4, 3), "top": nn.Sequential(nn.Conv2d(4, 5, 3), nn.Tanh())}, InputSpec(size=8))
    return FineTuner(backbone, head or LinearHead(5, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.01))


class Begins(pl.Callback):
    """The head that the first step begins with."""

    def on_train_start(self, trainer, pl_module):
        self.weight, self.bias = pl_module.head.weight.clone(), pl_module.head.bias.clone()


def fit(source, module=None, *, solved=None, path=None):
    begins, solved = Begins(), solved or FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES))
    trainer = pl.Trainer(max_epochs=2, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), solved, begins], **QUIET)
    trainer.fit(module or model(), source, ckpt_path=path)
    return trainer, solved, begins


@pytest.mark.parametrize("stored", [True, False])
def test_training_begins_with_the_probe_of_the_training_images_alone(tmp_path, stored):
    module = model()
    with torch.no_grad():
        images = torch.stack([data().transforms["val"](picture(i)) for i in range(30)])
        vectors = module.eval().backbone.pool(module.backbone(images))
    expected = fit_probe(vectors, torch.arange(30) % 3, l2=L2_PENALTIES)
    _, solved, begins = fit(FeatureData(data(), tmp_path, pooled=True) if stored else data(), module.train())
    assert solved.probe.scores == expected.scores
    assert torch.allclose(begins.weight, expected.weight, atol=1e-4) and torch.allclose(begins.bias, expected.bias, atol=1e-4)


@pytest.mark.parametrize("stored", [True, False])
def test_of_many_images_a_share_of_each_class_is_solved_on_where_training_follows(tmp_path, monkeypatch, capsys, stored):
    def labels(i):
        return (0 if i < 20 else 1 if i < 26 else 2,)

    monkeypatch.setattr("ftlit.lit.callbacks.probe_head.MOST_IMAGES", 15)
    source, module = FeatureData(data(labels), tmp_path, pooled=True) if stored else data(labels), model()
    few = data(labels).with_share(0.5).collection.splits["train"]
    assert [few.labels.count((label,)) for label in range(3)] == [10, 3, 2]
    with torch.no_grad():
        images = torch.stack([data().transforms["val"](picture(i)) for i in few.sources])
        vectors = module.eval().backbone.pool(module.backbone(images))
    expected = fit_probe(vectors, torch.tensor(few.labels)[:, 0], l2=L2_PENALTIES)
    _, solved, _ = fit(source, module.train())
    assert "head solved on 15 training images" in capsys.readouterr().out
    assert torch.allclose(solved.probe.weight, expected.weight, atol=1e-4)
    fit(source, solved=FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False))
    assert "head solved on 30 training images" in capsys.readouterr().out


def test_a_run_that_goes_on_keeps_the_head_of_its_checkpoint(tmp_path):
    trainer, _, _ = fit(data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=False)["state_dict"]["head.weight"]
    begins, solved = Begins(), FitProbeHead()
    going = pl.Trainer(max_epochs=3, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), solved, begins], **QUIET)
    going.fit(model(), data(), ckpt_path=tmp_path / "a.ckpt", weights_only=False)
    assert solved.probe is None and begins.weight.equal(held)


def test_where_nothing_else_trains_the_solution_is_the_end(tmp_path):
    module, solved = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    trainer, _, _ = fit(FeatureData(data(), tmp_path, pooled=True), module, solved=solved)
    assert trainer.global_step == 0 and torch.equal(module.head.weight.detach(), solved.probe.weight)
    assert all(torch.equal(before[name], value) for name, value in module.backbone.state_dict().items())


@pytest.mark.parametrize("stored", [True, False])
def test_val_goes_into_a_head_that_alone_is_solved_once_it_has_judged_it(tmp_path, stored):
    module, solved = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=False)
    fit(FeatureData(data(), tmp_path, pooled=True) if stored else data(), module, solved=solved)
    with torch.no_grad():
        vectors = module.eval().backbone.pool(module.backbone(torch.stack([data().transforms["val"](picture(i)) for i in range(30)])))
    both = torch.cat([vectors, vectors[:6]]), torch.cat([torch.arange(30), torch.arange(6)]) % 3
    expected = fit_probe(*both, l2=solved.probe.l2)
    assert torch.equal(module.head.weight.detach(), solved.probe.weight) and not torch.allclose(expected.weight, solved.probe.weight)
    solved.take_whole(module)
    assert torch.allclose(module.head.weight, expected.weight, atol=1e-4) and torch.allclose(module.head.bias, expected.bias, atol=1e-4)


@pytest.mark.parametrize(
    ("limits", "few", "trains"),
    [
        ({"limit_train_batches": 2}, None, False),
        ({"limit_val_batches": 0}, None, False),
        ({"limit_val_batches": 1}, None, False),
        ({}, 3, False),
        ({}, None, True),
    ],
)
def test_val_adds_nothing_where_images_are_few_on_purpose_or_training_follows(limits, few, trains):
    module, solved = model(), FitProbeHead(probing=LayerProbes(l2=L2_PENALTIES), trains=trains)
    trainer = pl.Trainer(max_epochs=1, callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), solved], **QUIET, **limits)
    trainer.fit(module, data(per_class=few))
    held = module.head.weight.clone()
    solved.take_whole(module)
    assert solved.whole is None and module.head.weight.equal(held)


def test_what_cannot_be_solved_is_one_line():
    with pytest.raises(UserError, match="'head' is no linear layer of FineTuner"):
        fit(data(), model(MLPHead(5, 3)))
    with pytest.raises(UserError, match="'classifier' is no linear layer"):
        fit(data(), solved=FitProbeHead("classifier"))


def test_the_warm_up_is_left_out_and_the_next_stage_begins_at_once():
    stages = [Stage(["head"]), Stage(["head.*"], epoch=1), Stage(["head", "backbone.top"], step=9), Stage(["*"], epoch=4)]
    found = without_warm_up(Schedule(stages, [("*", 0.5)]))
    assert [(stage.train, stage.begins) for stage in found.stages] == [(("head", "backbone.top"), "epoch 0"), (("*",), "epoch 4")]
    assert found.lr_scale == (("*", 0.5),) and without_warm_up(found) == found
    with pytest.raises(UserError, match="trains only the head"):
        without_warm_up(Schedule(stages[:2]))
