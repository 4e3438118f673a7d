"""What pages claim of their Python blocks: the plan of a torchvision network, its batch norms, a head trained on cached features,
and the epochs of a sweep.
"""

import contextlib
import io

import lightning.pytorch as pl
import pytest
import torch
from doc_pages import blocks
from paths import ROOT

from ftlit import Schedule, Stage, StagedFinetuning
from ftlit.lit.callbacks.metrics_file import MetricsFile

TORCHVISION = ROOT / "docs/lightning-torchvision.md"
CACHED = ROOT / "docs/cached-features.md"
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def block_with(page, text, language="python"):
    (found,) = (block.text for block in blocks(page) if block.language == language and text in block.text)
    return found


@pytest.fixture(scope="module")
def network():
    """The names of the block with the torchvision network, and what it prints."""
    space, printed = {"__name__": "block"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block_with(TORCHVISION, "torchvision.models.resnet18()"), space)
    return space, printed.getvalue()


@pytest.mark.e2e
def test_the_plan_of_the_torchvision_network_is_the_one_that_the_page_shows(network):
    space, printed = network
    assert block_with(TORCHVISION, "stage 0", "text") in printed
    assert space["trainer"].callbacks[0].stage.train == ("*",)


class Statistics(pl.Callback):
    """The statistics of each batch norm at the end of each epoch; in between `.train()` is called on the module, as other code may."""

    def __init__(self):
        self.of_epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.train()

    def on_train_epoch_end(self, trainer, pl_module):
        self.of_epochs.append({name: value.clone() for name, value in pl_module.named_buffers() if name.endswith("running_mean")})


def changed(space, policy):
    """The layers whose statistics a stage changes: of `model.fc`, then also of `model.layer4`, with this policy."""
    policies = {} if policy is None else {"batchnorm": policy}
    module, seen = space["Photos"](), Statistics()
    before = {name: value.clone() for name, value in module.named_buffers() if name.endswith("running_mean")}
    schedule = Schedule([Stage(["model.fc"], **policies), Stage(["model.fc", "model.layer4"], epoch=1, **policies)])
    trainer = pl.Trainer(max_epochs=2, callbacks=[StagedFinetuning(schedule), seen], limit_train_batches=1, **QUIET)
    trainer.fit(module, space["train"])
    spans = zip([before, *seen.of_epochs], seen.of_epochs, strict=False)
    return [{name.split(".")[1] for name in old if not torch.equal(old[name], new[name])} for old, new in spans]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("policy", "layers"),
    [
        (None, {"layer4"}),
        ("live", {"layer4"}),
        ("frozen_stats", set()),
        ({"model.layer4.0": "live", "*": "frozen_stats"}, {"layer4"}),
        ({"model.layer3": "live", "*": "frozen_stats"}, set()),
    ],
)
def test_statistics_of_a_plain_network_change_only_where_its_batch_norms_are_live_and_train(network, policy, layers):
    assert changed(network[0], policy) == [set(), layers]


@pytest.mark.e2e
def test_a_head_on_vectors_of_a_loader_of_ones_own_is_that_of_its_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space = {"__name__": "block"}
    exec(block_with(CACHED, "load_digits"), space)
    head, backbone, images, vectors = (space[name] for name in ("head", "backbone", "images", "vectors"))
    with torch.no_grad():
        assert torch.allclose(head(backbone.pool(backbone(images[:50]))), head(vectors[:50]), atol=1e-3)
        assert (head(vectors).argmax(dim=1) == space["features"].targets).float().mean() > 0.97


@pytest.mark.parametrize("trained", [[], ["1"], ["0", "1"]])
def test_the_epochs_of_a_sweep_are_read_with_the_swept_options_also_where_heads_are_only_fitted(tmp_path, monkeypatch, trained):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    (sweep := tmp_path / "runs/sweeps/mine").mkdir(parents=True)
    (sweep / "sweep.csv").write_text("job,seed,overrides,status,folder\n0,7,seed=7,finished,0\n1,8,seed=8,finished,1\n")
    for folder in ("0", "1"):
        logger = MetricsFile(sweep / folder)
        for epoch in range(2 if folder in trained else 0):
            logger.log_metrics({"epoch": epoch, "val/accuracy": 0.5, "val/loss": 1.0}, epoch)
        logger.trains = False
        logger.log_metrics({"epoch": 2, "val/accuracy": 0.75}, 2)  # of the result
        logger.save()
    exec(block_with(ROOT / "docs/runs.md", "pandas", "py"), space := {})
    found = space["epochs"][["folder", "epoch", "val/accuracy", "seed"]].values.tolist()
    assert found == [[folder, epoch, 0.5, {"0": 7, "1": 8}[folder]] for folder in trained for epoch in range(2)]
