"""The memory that a process needs is predicted from shapes, names and one small step of the optimizer."""

from functools import partial

import pytest
import torch
from torch import nn

from ftlit.lit.sharding import memory
from ftlit.lit.sharding.memory import available_memory, measured_memory, process_memory

ADAMW, SGD = partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1)
MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
MOMENTUM, ADAGRAD = partial(SGD, momentum=0.9), partial(torch.optim.Adagrad, lr=0.1)


def net():
    return nn.ModuleDict({"low": nn.Linear(3, 5), "top": nn.Linear(5, 2)})  # 15 + 5, 10 + 2 values


@pytest.mark.parametrize(
    ("optimizer", "copies", "scalars"),
    [(ADAMW, 2, 4), (SGD, 0, 0), (MOMENTUM, 1, 0), (ADAGRAD, 1, 4)],
)
def test_in_one_process_the_prediction_is_what_a_step_leaves(optimizer, copies, scalars):
    module = net()
    built = optimizer([{"params": list(module.parameters())}])
    module["top"](module["low"](torch.ones(1, 3))).sum().backward()
    built.step()
    names = dict(module.named_parameters())
    found = process_memory(names, [names], optimizer, 1)
    assert (found.parameters, found.gradients, found.optimizer) == (4 * 32, 4 * 32, 4 * 32 * copies + 4 * scalars)
    measured = measured_memory(module, built)
    assert (measured.parameters, measured.gradients, measured.optimizer) == (found.parameters, found.gradients, found.optimizer)


def test_shards_are_whole_rows_and_stages_add_up():
    names = dict(net().named_parameters())
    found = process_memory(names, [["top.weight", "top.bias"], ["low.weight"]], partial(SGD, momentum=0.9), 2, ["low", "top"])
    assert found.parameters == 4 * (3 * 3 + 3 + 5 + 1)  # 3 of 5 rows, 1 of 2
    assert found.gradients == 4 * 9 and found.optimizer == 4 * (5 + 1 + 9)  # of the larger stage; of both
    assert found.gathered == 4 * 20 and found.total == found.parameters + found.gradients + found.optimizer
    assert found.describe(2).startswith("each of 2 processes holds shards: parameters 72 B, gradients 36 B, optimizer state 60 B; ")


def test_weights_on_the_meta_device_are_predicted_too():
    module = net()
    assert process_memory(dict(module.to("meta").named_parameters()), [[]], ADAMW, 4).parameters == 4 * (2 * 3 + 2 + 5 + 1)


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.LBFGS, torch.optim.SparseAdam, torch.optim.Adafactor, pytest.param(getattr(torch.optim, "Muon", None), marks=MUON)],
)
def test_an_optimizer_whose_state_is_not_known_has_no_prediction(optimizer):
    """LBFGS needs a closure, SparseAdam sparse gradients, Muon matrices; Adafactor keeps rows and columns."""
    names = dict(net().named_parameters())
    assert process_memory(names, [names], optimizer, 2) is None


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    assert available_memory() > 1e6
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    of_machine = available_memory()
    for name, text in {"max": "3000", "current": "2500", "stat": "anon 1500\ninactive_file 700\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert available_memory() == 3000 - 2500 + 700
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == pytest.approx(of_machine, rel=0.5)
