"""Stages that train a part of a layer: nothing else moves, a resumed run has the same bits, and compiled layers train alike."""

import pytest
import torch
from staged_net import Net, fit, moved

from ftlit import Lora, Schedule, Stage, add_lora

PARTS = Schedule([Stage(["head"]), Stage(["head", {"body": "bias"}], epoch=1), Stage(["head", {"body": "lora"}], epoch=2)])


def net():
    model = Net()
    add_lora(model, Lora(rank=2), within=["body"])
    return model


def test_only_the_part_of_the_stage_moves():
    model, shots = fit(3, schedule=PARTS, model=net())
    statistics = {name for name in shots.states[0] if "running" in name or "tracked" in name}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    matrices = {name for name, _ in model.named_parameters() if name.endswith((".0.a", ".0.b"))}
    head = {"head.weight", "head.bias"}
    assert moved(shots.states[0], shots.states[1]) - statistics == biases | head
    assert moved(shots.states[1], shots.states[2]) - statistics == matrices | head


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_run_has_the_bits_of_the_whole_run(tmp_path, epoch):
    whole, _ = fit(4, schedule=PARTS, model=net(), folder=tmp_path)
    torch.manual_seed(7)  # other random matrices, which the checkpoint replaces
    resumed, _ = fit(4, schedule=PARTS, model=net(), ckpt_path=tmp_path / f"{epoch}.ckpt")
    assert not moved(whole.state_dict(), resumed.state_dict())


@pytest.mark.slow
def test_compiled_layers_with_lora_train_like_others():
    torch.compiler.reset()
    plain, _ = fit(3, schedule=PARTS, model=net())
    model = net()
    for layer in (*model.body.values(), model.head):
        layer.compile(backend="aot_eager")
    compiled, _ = fit(3, schedule=PARTS, model=model)
    torch.compiler.reset()
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(tensor, compiled.state_dict()[name], atol=1e-6), name
