"""Every option of the groups cache, callbacks, pretrain and probe changes what a run computes, writes or prints."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from composed_configs import OPTIONS, composed
from feature_runs import ALL, HEAD, QUIET, data, fit
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from paths import CONF
from torch import nn

from ftlit import Stage, UserError
from ftlit.features import image_hashes, shard, table
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate
from ftlit.recipes.probe import run as run_probe

# option -> another value; or values that it needs, and it with another value
OTHERS: dict[str, dict[str, Any]] = {
    "cache": {
        "folder": "b",
        "dtype": "float16",
        "max_gb": 0,
        "seed": 1,
        "trust": True,
        "pixels": True,
    },
    "callbacks": {
        **dict.fromkeys(("last", "seeding", "best", "lr_monitor", "speed", "progress")),  # null: without it
        "finite_loss": ({"lr": float("nan")}, {"lr": float("nan"), "finite_loss": None}),
        "last.path": "b/last.ckpt",
        "last.every_n_steps": 1,
        "last.every_seconds": 0,
        "seeding.seed": 1,
        "best.dirpath": "b",
        "best.filename": "b",
        "best.monitor": "val/loss",
        "best.mode": "min",
    },
    "pretrain": {
        "noise": 0.9,
        "epochs": 1,
        "k": 5,
        "optimizer.lr": 0.1,
        "optimizer.momentum": 0.1,
        "optimizer.weight_decay": 0.5,
    },
    "probe": {"kinds": ["svm"], "l2": [0.5], "cuts": ["layer3"], "poolings": ["max"], "seed": 1, "repeats": 2, "rows": 20},
}
FAST_PROBE = {"kinds": ["ridge"], "l2": [1.0, 0.01], "cuts": ["layer4"], "poolings": ["average"]}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    """Initialize Hydra as the command line does."""
    with fresh_hydra():
        yield


def options(group: str) -> Iterator[tuple[str, str]]:
    """Yield (option of the group, name of a value below it), each name once."""
    seen: set[str] = set()
    for name in OPTIONS[group]:
        for path in paths(OmegaConf.create((CONF / group / f"{name}.yaml").read_text())):
            if path not in seen:
                seen.add(path)
                yield name, path


def paths(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, node):
        if key == "defaults":
            continue
        nested = OmegaConf.is_dict(node._get_node(key))
        if nested:
            yield from paths(node[key], f"{prefix}{key}.")
        if not key.startswith("_") and (not nested or "_partial_" not in node[key]):
            yield prefix + key


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock")


def cache(node: DictConfig, monkeypatch, capsys) -> Any:
    """Two runs, of two users: folders of features, what each epoch reads, the layers that run on images, and weights."""
    found = []
    if OmegaConf.is_interpolation(node, "folder"):
        node.folder = "a"
    for _ in range(2):
        foreign = {Path(path).resolve() for path in files()}
        for module in (image_hashes, shard, table):
            monkeypatch.setattr(module, "is_foreign", lambda path, foreign=foreign: path.resolve() in foreign, raising=False)
        module, _, passes = fit(instantiate(node)(data(augment="photo", views=2)), [Stage(HEAD), Stage(ALL, epoch=2)], max_epochs=3)
        found.append((passes.epochs, passes.images, [value.tolist() for value in module.state_dict().values()]))
    return {path.split("/")[0] for path in files()}, found


class Scripted(pl.LightningModule):
    """Accuracy is best in the second of three epochs, and worst in the first; the loss falls."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr, self.layer, self.writes = lr, nn.Sequential(nn.Dropout(), nn.Linear(4, 1)), 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).mean() * self.lr

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val/accuracy": (0.1, 0.3, 0.2)[self.current_epoch], "val/loss": 3.0 - self.current_epoch})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        self.writes += 1


class Names(Logger):
    """A logger that keeps the names of what is logged."""

    name, version = "names", 0

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.names |= set(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def callbacks(node: DictConfig, monkeypatch, capsys) -> Any:
    """What a run of three epochs of two steps writes and prints, and its weights; or its error."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)), batch_size=2)
    torch.manual_seed(0)
    module = Scripted(node.pop("lr", 1.0))
    built = [instantiate(callback) for callback in node.values() if callback]
    tracker = Names()
    settings = QUIET | {"logger": [MetricsFile("metrics"), tracker], "enable_checkpointing": True, "enable_progress_bar": True}
    try:
        pl.Trainer(accelerator="cpu", callbacks=built, max_epochs=3, default_root_dir="root", **settings).fit(module, loader, loader)
    except UserError as error:
        return str(error)
    best = [torch.load(path, weights_only=True)["epoch"] for path in files() if path.endswith("best.ckpt")]
    header = Path("metrics/metrics.csv").read_text().splitlines()[0]
    return files(), header, tracker.names, module.writes, best, module.layer[1].weight.tolist(), capsys.readouterr().out


def pretrain(node: DictConfig, monkeypatch, capsys) -> Any:
    """The weights of a layer."""
    torch.manual_seed(0)
    inputs, layer, learning = torch.rand(8, 6), nn.Sequential(nn.Linear(6, 4), nn.ReLU()), instantiate(node)
    objective = learning.objective(layer, None, inputs)
    optimizer = learning.optimizer(objective.parameters())
    for _ in range(learning.epochs):
        optimizer.zero_grad()
        objective.loss(inputs)[0].backward()
        optimizer.step()
    return layer[0].weight.tolist()


def probe(node: DictConfig, monkeypatch, capsys) -> Any:
    """The results of a run, on few images."""
    few = ["recipe=probe", "data.per_class=4", "data.num_workers=0", "report=false", "paths.run=run", "paths.cache=null"]
    cfg = composed(*few).copy()
    monkeypatch.setattr("ftlit.recipes.probe.write_config", lambda cfg: None)  # it needs a whole command line
    cfg.probe = OmegaConf.merge(node, {key: value for key, value in FAST_PROBE.items() if node[key] != OTHERS["probe"][key]})
    run_probe(cfg)
    return [Path("run", name).read_text() for name in ("result.json", "probe.csv")]


RUN = {"cache": cache, "callbacks": callbacks, "pretrain": pretrain, "probe": probe}


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """What a run does with these values of an option, each run in an empty folder."""

    def run(group: str, name: str, values: dict[str, Any]) -> Any:
        monkeypatch.chdir(tempfile.mkdtemp(dir=tmp_path))
        node = composed(f"{group}={name}").copy()[group]
        OmegaConf.set_struct(node, False)
        for key, value in values.items():
            OmegaConf.update(node, key, value, merge=False)
        return RUN[group](node, monkeypatch, capsys)

    return run


@pytest.mark.parametrize(("group", "name", "path"), [(group, *pair) for group in RUN for pair in options(group)])
def test_an_option_changes_what_a_run_does(group, name, path, outcome):
    other = OTHERS[group][path]
    before, after = other if isinstance(other, tuple) else ({}, {path: other})
    assert outcome(group, name, before) != outcome(group, name, after)


@pytest.mark.parametrize("group", RUN)
def test_the_same_options_do_the_same(group, outcome):
    assert outcome(group, OPTIONS[group][0], {}) == outcome(group, OPTIONS[group][0], {})
