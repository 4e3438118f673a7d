"""Upper layers: dropped, reinitialized or added; the hidden layers of an old classifier are cuts, too."""

import json
import os
import re
import sys

import pytest
import torch
import warm
from paths import ROOT
from PIL import Image

from ftlit import extract_features, fit_probe, load_backbone

pytestmark = pytest.mark.e2e

ALEXNET = (
    "backbone=alexnet",
    "backbone.weights=null",
    "backbone.input_spec.size=64",
    "data=folder",
    "data.root=photos",
    "data.augment=none",
    "report=false",
)


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", *arguments]
    return warm.run(command, cwd=folder, env=dict(os.environ), timeout=600)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Make pictures of two classes, dark and light."""
    folder, draw = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(25):
            pixels = (level + 40 * torch.randn(64, 64, 3, generator=draw)).clamp(0, 255).to(torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "photos" / name / f"{i}.png")
    return folder


def test_fc6_and_fc7_can_be_probed(photos):
    backbone = load_backbone("alexnet", weights=None, input_spec={"size": 64})
    images = torch.cat([torch.randn(10, 3, 64, 64), torch.randn(10, 3, 64, 64) + 1])
    features = extract_features(backbone, [(images, torch.arange(20) // 10)], ["fc6", "fc7"], cache=photos / "store")
    assert [features[cut].shape for cut in ("fc6", "fc7")] == [(4096,)] * 2
    assert all(float(features[cut].read(range(20)).min()) == 0 for cut in features.cuts)  # after their ReLU
    assert all(fit_probe(features, cut=cut, l2=1e-2).accuracy(features) == 1 for cut in features.cuts)
    done = train(photos, "recipe=probe", "probe.cuts=[fc6,fc7]", "probe.l2=[1e-1]", "hydra.run.dir=probe", *ALEXNET)
    assert done.returncode == 0 and "│ fc7   │ average, 4,096 │" in done.stdout, done.stdout + done.stderr


def test_a_network_cut_at_fc6_and_one_with_reinitialized_fc7_are_fine_tuned(photos):
    dropped = train(photos, "backbone.cut=fc6", "scenario=small_similar", "hydra.run.dir=dropped", *ALEXNET)
    assert dropped.returncode == 0 and re.search(r"at the cuts [^;]*, fc6, \d+ features", " ".join(dropped.stdout.split())), dropped.stderr
    assert json.loads((photos / "dropped/result.json").read_text())["test/accuracy"] == 1
    reinit = ("backbone.reinit=[fc7]", "scenario=small_similar", "optimizer.lr=1e-4", "trainer.max_epochs=1", "hydra.run.dir=reinit")
    replaced = train(photos, *reinit, *ALEXNET)
    assert replaced.returncode == 0, replaced.stderr
    assert (
        "reinitialized: fc7" in replaced.stdout
        and "stage 0   epoch 0: head + fc7" in replaced.stdout
        and "features at fc6" in replaced.stdout
    )


def test_a_search_is_a_sweep_and_each_job_prints_the_command_that_resumes_it_alone(tmp_path):
    few = ("data.per_class=4", "probe.l2=[1e-1]", "report=false", "paths.runs=runs")
    done = train(tmp_path, "hparams_search=drop_layers", *few)
    assert done.returncode == 0, done.stderr
    results = sorted(tmp_path.glob("runs/sweeps/*/*/*/result.json"))
    assert len(results) == 4
    cuts = [f"{cut}, {width} features" for cut, width in (("layer4", 320), ("layer3", 224), ("layer2", 128), ("layer1", 64), ("stem", 32))]
    logs = "".join((path.parent / "train.log").read_text() for path in results)
    assert [text in logs for text in cuts] == [True] * 4 + [False]
    config = (results[1].parent / "config.yaml").read_text()
    assert "cut: -2" in config
    again = train(tmp_path, "hparams_search=drop_layers", *few, "backbone.cut=-2", "hydra.mode=RUN", "hydra.run.dir=alone")
    assert again.returncode == 0 and (tmp_path / "alone/result.json").read_text() == results[1].read_text()
    assert re.search(r"hydra\.mode=RUN \S+ resume=true", " ".join(logs.split()))  # the folder between them
