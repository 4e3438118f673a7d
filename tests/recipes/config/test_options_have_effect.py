"""Every option of the groups head, loss, optimizer, lr_scheduler, schedule and trainer changes what is built from it."""

from typing import Any

import pytest
import torch
from composed_configs import NEEDED, OPTIONS, composed
from omegaconf import OmegaConf
from paths import CONF

from ftlit.recipes.config.hydra_internals import fresh_hydra, instantiate

LAYERS = ["embeddings", *(f"encoder.{i}" for i in range(3))]
OTHERS: dict[str, Any] = {  # another value of an option that is no number
    "activation": "sigmoid",
    "alpha": 4.0,
    "class_weights": "balanced",
    "combine": "average",
    "cuts": 1,
    "freeze_layers": "0",
    "lora": {"rank": 2},
    "lr_scale": {"*": 0.5},
    "mode": "max",
    "monitor": "val/f1",
    "precision": "bf16-mixed",
    "fused": True,
    "deterministic": True,
    "gradient_clip_val": 1.0,
    "hidden": [8],
    "limit_train_batches": 2,
    "limit_val_batches": 2,
    "limit_test_batches": 2,
    "stages": [{"train": ["*"]}],
    "targets": ["*.qkv.weight"],
    "unit": {"step": "epoch", "epoch": "step"},
    "until": {"metric": "val/accuracy", "threshold": 0.9},
    "scheduler": {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": 0.5},
}
# What these change is seen on other machines, or in the output only.
MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "enable_model_summary", "default_root_dir")


@pytest.fixture(scope="module", autouse=True)
def hydra():
    """Initialize Hydra as the command line does."""
    with fresh_hydra():
        yield


def options(group):
    """Yield (option of the group, name of a value below it)."""
    for name in OPTIONS[group]:
        text = (CONF / group / f"{name}.yaml").read_text()
        node = OmegaConf.create(text)
        for key in node:
            if str(key) == "curve":
                yield from ((name, f"curve.{leaf}") for leaf in node.curve if not str(leaf).startswith("_"))
            elif not str(key).startswith("_") and key != "defaults" and key not in MACHINE:
                yield name, str(key)


def other(path, value):
    leaf = path.rpartition(".")[2]
    if leaf in OTHERS:
        return OTHERS[leaf][value] if leaf == "unit" else OTHERS[leaf]
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2 + 0.2


def head(node):
    torch.manual_seed(0)
    if "cuts" in node:  # as `build_head` gives them
        node = {**node, "cuts": ["low", "top"][-node["cuts"] if node["cuts"] != "auto" else 0 :]}
    head = instantiate(node, in_features=[4, 4][-len(node.get("cuts", "-")) :] if "cuts" in node else 4, num_classes=3)
    return repr(head), {name: tuple(values.shape) for name, values in head.named_parameters()}


def loss(node):
    return instantiate(node, counts=[5, 2, 1])(torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0])).item()


def optimizer(node):
    (group,) = instantiate(node)([{"params": [torch.nn.Parameter(torch.zeros(1))]}]).param_groups
    return {name: value for name, value in group.items() if name != "params"}


def lr_scheduler(node):
    """The rates of 20 epochs of 5 steps, with a metric that gets worse, and how Lightning and stages use them."""
    built = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = instantiate(node)(built, steps=100, epochs=20)
    config, seen = rates.config, []
    for step in range(100):
        if config["interval"] == "step" or step % 5 == 4:
            metric = (float(step),) if config.get("reduce_on_plateau") else ()
            built.step()
            rates.step(*metric)
        seen.append(built.param_groups[0]["lr"])
    return seen, {name: value for name, value in config.items() if name != "scheduler"}, rates.restarts


def schedule(node):
    return repr(instantiate(node, layers=LAYERS))


def trainer(node):
    """All values that a Trainer for a CPU keeps, of plain types."""
    settings = {str(name): value for name, value in node.items() if name != "default_root_dir"}
    settings["precision"] = settings["precision"].replace("auto", "32-true")  # a run replaces it before
    built = instantiate({**settings, "accelerator": "cpu", "devices": 1, "strategy": "auto", "logger": False})
    names = ("accumulate_grad_batches", "gradient_clip_val", "check_val_every_n_epoch", "log_every_n_steps", "num_sanity_val_steps")
    limits = [getattr(built, f"limit_{split}_batches") for split in ("train", "val", "test")]
    values = [getattr(built, name) for name in names]
    return [built.max_epochs, str(built.precision), *limits, *values, torch.are_deterministic_algorithms_enabled()]


BUILD = {"head": head, "loss": loss, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "schedule": schedule, "trainer": trainer}


@pytest.mark.parametrize(("group", "name", "path"), [(group, *pair) for group in BUILD for pair in options(group)])
def test_an_option_changes_what_is_built(group, name, path):
    node = composed(f"{group}={name}", *NEEDED.get((group, name), []))[group]
    if group == "lr_scheduler":
        node.setdefault("unit", "step")
    before = BUILD[group](node)
    OmegaConf.set_struct(node, False)
    OmegaConf.update(node, path, other(path, OmegaConf.select(node, path)), merge=False)
    try:
        assert BUILD[group](node) != before
    finally:
        torch.use_deterministic_algorithms(False)
