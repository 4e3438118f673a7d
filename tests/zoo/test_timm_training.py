"""Networks of timm whose blocks are layers, wherever layers count: stages, stored features, resuming, probes at each cut, export."""

from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning_net import Stop
from PIL import Image
from timm_networks import BLOCKWISE

from ftlit import FeatureData, FineTuner, LastCheckpoint, SeedEachStep, StagedFinetuning, extract_features, fit_probe, load_timm
from ftlit.data.dataset import Collection, Examples
from ftlit.export.export_network import export
from ftlit.finetuning.presets import top_down
from ftlit.inference.network import Network
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.models.heads import LinearHead

pytestmark = [pytest.mark.e2e, pytest.mark.zoo]

SLOW = pytest.mark.slow
MOST = [pytest.param(family, marks=SLOW if family == "metaformer" else ()) for family in BLOCKWISE]  # that one is large
QUICK = ("eva, rotary positions", "eva, learned rotary positions", "beit", "hiera")  # an export takes seconds
EXPORTED = [pytest.param(family, marks=() if family in QUICK else SLOW) for family in BLOCKWISE]
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}


def backbone_of(family):
    torch.manual_seed(0)
    name, size, _, settings = BLOCKWISE[family]
    return load_timm(name, weights=None, input_spec={"size": size, "resize": size}, split_at="blocks", **settings)


def picture(size, i):
    return Image.linear_gradient("L").rotate(i * 7).resize((size, size)).convert("RGB")


def data(spec):
    counts = {"train": range(8), "val": range(50, 54), "test": range(60, 62)}
    splits = {split: Examples(places, [(i % 2,) for i in places], partial(picture, spec.size)) for split, places in counts.items()}
    return ImageData(Collection(splits, ["a", "b"]), spec, batch_size=4, num_workers=0, augment="none")


def fit(family, wrap=lambda source: source, *, last=None, stop=None, resume=None):
    """Train from the head down to all layers, one stage an epoch; return the module."""
    backbone = backbone_of(family)
    schedule = top_down(backbone.layers_with_parameters)
    optimizer = partial(torch.optim.SGD, lr=0.05)
    module = FineTuner(backbone, LinearHead(backbone.num_features, 2), num_classes=2, optimizer=optimizer, lr_scale=schedule.lr_scale)
    saving = [LastCheckpoint(last, every_n_steps=1)] if last else []
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=len(schedule.stages), num_sanity_val_steps=0, **QUIET,
        callbacks=[StagedFinetuning(schedule), SeedEachStep(3), *saving, Stop(stop)],
    )  # fmt: skip
    with nullcontext() if stop is None else pytest.raises(InterruptedError):
        trainer.fit(module, wrap(data(backbone.input_spec)), ckpt_path=resume, weights_only=False)
    return module


@pytest.mark.parametrize("family", MOST)
def test_a_run_from_stored_features_that_is_resumed_gives_the_weights_of_a_run_from_images(family, tmp_path):
    stored, last = partial(FeatureData, folder=tmp_path / "features", pooled=False), tmp_path / "last.ckpt"
    from_images = fit(family)
    fit(family, stored, last=last, stop=3)
    resumed = fit(family, stored, last=last, resume=last)
    start = backbone_of(family)
    for name, wanted in from_images.backbone.named_parameters():
        torch.testing.assert_close(resumed.backbone.get_parameter(name), wanted, rtol=0, atol=1e-5, msg=name)
    assert all(
        any(
            not torch.equal(p, start.get_parameter(f"{layer}.{name}"))
            for name, p in from_images.backbone.get_submodule(layer).named_parameters()
        )
        for layer in start.layers_with_parameters
    )


@pytest.mark.parametrize("family", BLOCKWISE)
def test_stored_features_and_probes_at_each_cut_are_those_of_the_backbone(family, tmp_path):
    backbone = backbone_of(family).eval()
    images, labels = torch.randn(12, *backbone.input_spec.shape, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    features = extract_features(backbone, [(images, labels)], backbone.cuts, cache=tmp_path)
    with torch.no_grad():
        for cut, wanted in zip(backbone.cuts, backbone.features_at(images, backbone.cuts), strict=True):
            vectors = backbone.pool(wanted)
            probe, alone = fit_probe(features, cut=cut, l2=1e-2), fit_probe(vectors, labels, l2=1e-2)
            torch.testing.assert_close(probe.logits(vectors), alone.logits(vectors), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", EXPORTED)
def test_the_exported_network_gives_the_logits_of_the_run(family, tmp_path):
    pytest.importorskip("onnxruntime")
    backbone = backbone_of(family).eval()
    network = Network(backbone, LinearHead(backbone.num_features, 2).eval(), ["a", "b"], multilabel=False)
    assert export(network, "onnx", tmp_path / "net.onnx").exists()  # it compares the logits
