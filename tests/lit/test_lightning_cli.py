"""The project of the page with LightningCLI: schedule and layer-wise rates from YAML."""

import sys

import pytest
import torch
import yaml
from doc_pages import blocks
from paths import ROOT

PAGE = ROOT / "docs/lightning-torchvision.md"
DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class MyData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % 3), batch_size=4)
"""
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def block_with(text, language):
    (found,) = (block.text for block in blocks(PAGE) if block.language == language and text in block.text)
    return found


@pytest.mark.parametrize("order", [("ftlit.LastCheckpoint", "ftlit.EmaWeights"), ("ftlit.EmaWeights", "ftlit.LastCheckpoint")])
def test_the_average_of_weights_is_taken_in_any_order_of_the_callbacks(tmp_path, monkeypatch, order):
    """The optimizer factory of LightningCLI holds the trainer, and LastCheckpoint in it cannot be copied while it receives signals."""
    pytest.importorskip("jsonargparse")
    (tmp_path / "data_of_average.py").write_text(DATA)
    (tmp_path / "project.py").write_text(block_with("LightningCLI(Classifier)", "text"))
    config = yaml.safe_load(block_with("schedules.top_down", "yaml"))
    config["model"]["optimizer"]["init_args"]["lr"] = 1e-3
    given = {one["class_path"]: one for one in yaml.safe_load(block_with("ftlit.EmaWeights", "yaml"))["trainer"]["callbacks"]}
    config["trainer"] |= {"callbacks": [given[name] for name in order], "max_epochs": 1, **QUIET}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import project
    from lightning.pytorch.cli import LightningCLI

    cli = LightningCLI(
        project.Classifier, args=["fit", "--config", "config.yaml", "--data", "data_of_average.MyData"], save_config_callback=None
    )
    sys.modules.pop("project")
    saved = torch.load("last.ckpt", weights_only=True)
    assert cli.trainer.global_step == 1 and {"current_model_state", "averaging_state"} <= saved.keys()


@pytest.mark.parametrize("stages", ["function", "joined layers", "list"])
def test_schedule_and_rates_of_layers_come_from_yaml(tmp_path, monkeypatch, capsys, stages):
    pytest.importorskip("jsonargparse")
    (tmp_path / "my_data.py").write_text(DATA)
    (tmp_path / "project.py").write_text(block_with("LightningCLI(Classifier)", "text"))
    config = yaml.safe_load(block_with("schedules.top_down", "yaml"))
    config["model"]["optimizer"]["init_args"]["lr"] = 1e-3  # YAML 1.1 reads 1e-3 as a text, jsonargparse as a number
    given = config["trainer"]["callbacks"][0]["init_args"]
    if stages == "list":
        given["schedule"] = yaml.safe_load(block_with("stages:", "yaml"))["schedule"]
    if stages == "joined layers":
        given["schedule"]["init_args"]["layers"] = [["conv1", "bn1", "layer[12]"], "layer3", "layer4"]
    config["trainer"] |= QUIET
    (tmp_path / "my_config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import project
    from lightning.pytorch.cli import LightningCLI

    cli = LightningCLI(project.Classifier, args=["fit", "--config", "my_config.yaml", "--data", "my_data.MyData"])
    sys.modules.pop("project")
    rates = {group["name"]: group["lr"] for group in cli.trainer.optimizers[0].param_groups}
    assert rates["fc"] == 1e-3 and rates["encoder.layer4"] == pytest.approx(1e-4)
    assert stages == "list" or rates["encoder.layer3"] == pytest.approx(8e-5)
    assert stages != "joined layers" or rates["encoder.conv1"] == rates["encoder.layer[12]"] == pytest.approx(6.4e-5)
    out = capsys.readouterr().out
    assert "fc: 1,539 parameters; trains in stage 0-" in out and "batch norm frozen_stats" in out


OWNER = """
import torch
from lightning.pytorch import LightningModule

class Owner(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder, self.fc = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten()), torch.nn.Linear(64, 3)
        self.encoder.requires_grad_(False)
    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.fc(self.encoder(batch[0])), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.fc.parameters(), 0.1)
"""


THEIR_DATA = DATA.replace("MyData", "Theirs").replace(
    "    def train_dataloader",
    """    def __init__(self, images: int = 4, path: str = ""):
        super().__init__()
        self.save_hyperparameters()
    def setup(self, stage):
        assert set(self.hparams) == {"images", "path"} and self.hparams.images == 4
    def train_dataloader""",
)


def test_stored_features_of_own_data_come_from_yaml(tmp_path, monkeypatch, capsys):
    """Also of data with `save_hyperparameters`, to which LightningCLI gives the arguments of FeatureData."""
    pytest.importorskip("jsonargparse")
    (tmp_path / "their_data.py").write_text(THEIR_DATA)
    (tmp_path / "their_owner.py").write_text(OWNER)
    data = {
        "class_path": "ftlit.FeatureData",
        "init_args": {"cut": "encoder", "folder": "store", "data": {"class_path": "their_data.Theirs", "init_args": {"path": "x"}}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data, "trainer": {"max_epochs": 1, **QUIET}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from lightning.pytorch.cli import LightningCLI
    from their_owner import Owner

    cli = LightningCLI(Owner, args=["fit", "--config", "config.yaml"], save_config_callback=None)
    assert "4 computed" in capsys.readouterr().out and cli.datamodule.hparams_initial == {"images": 4, "path": "x"}


SETS = """
import torch
from torch.utils.data import TensorDataset

class Photos(TensorDataset):
    def __init__(self, n: int = 4):
        super().__init__(torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)
"""


def test_a_run_from_yaml_resumes(tmp_path, monkeypatch, capsys):
    """The data of the page."""
    pytest.importorskip("jsonargparse")
    (tmp_path / "my_sets.py").write_text(SETS)
    (tmp_path / "resuming_owner.py").write_text(OWNER.replace("Owner", "Resuming"))
    config = yaml.safe_load(block_with("ftlit.ResumableData", "yaml"))
    config["trainer"] |= QUIET
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from lightning.pytorch.cli import LightningCLI
    from resuming_owner import Resuming

    for epochs, ckpt_path in ((1, []), (2, ["--ckpt_path", "last.ckpt"])):
        args = ["fit", "--config", "config.yaml", f"--trainer.max_epochs={epochs}", *ckpt_path]
        cli = LightningCLI(Resuming, args=args, save_config_callback=None)
    assert cli.trainer.global_step == 2 * 5
