"""Weights files as people have them: any prefix, any key, several state dicts, checkpoints with other values, ftlit's own checkpoints."""

import argparse
import re
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.zoo import load_backbone
from ftlit.zoo.weights.weight_sources import find


@pytest.fixture(scope="module")
def state():
    """The tensors of a small network."""
    torch.manual_seed(1)
    return load_backbone("glyph", weights=None).state_dict()


def save(content, folder, name="w.pth"):
    torch.save(content, folder / name)
    return folder / name


def loads(path, state, **settings):
    """Whether the backbone of this file has these tensors."""
    loaded = load_backbone("glyph", weights=path, **settings).state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "encoder.", "net.", "student.backbone.", "a.b.c.d.", "0."])
def test_any_one_prefix_is_removed(prefix, state, tmp_path):
    head = {"head.weight": torch.ones(2, 2), "queue": torch.ones(3)}
    assert loads(save({**under(prefix, state), **head}, tmp_path), state)


def test_the_content_decides_how_a_file_is_read_whatever_its_name(state, tmp_path):
    assert loads(save(state, tmp_path, "w.safetensors"), state)
    save_file(state, tmp_path / "other.pth")
    assert loads(tmp_path / "other.pth", state)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("weight", torch.Tensor.to_sparse, "has tensors in a sparse layout"),
        ("weight", lambda tensor: tensor.to("meta"), "has tensors without values"),
        ("running_var", torch.neg, "has negative variances"),
    ],
)
def test_tensors_that_no_network_can_use_are_named(state, tmp_path, name, change, says):
    changed = {key: change(tensor) if key.endswith(name) and tensor.ndim in (1, 4) else tensor for key, tensor in state.items()}
    with pytest.raises(UserError, match=says):
        load_backbone("glyph", weights=save(changed, tmp_path))


def test_wrappers_inside_a_name_are_removed(state, tmp_path):
    wrapped = {name.replace(".", "._orig_mod._fsdp_wrapped_module.", 1): tensor for name, tensor in state.items()}
    assert loads(save(wrapped, tmp_path), state)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "model_state", "teacher", "params", "my.own key"])
def test_a_state_dict_one_level_down_is_found_under_any_key(key, state, tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    rng = torch.zeros(8, dtype=torch.uint8)
    assert loads(save({"optimizer": optimizer, "rng_state": rng, key: OrderedDict(under("module.", state))}, tmp_path), state)


def test_of_two_the_first_is_taken_without_ema_and_the_note_names_the_other(state, tmp_path):
    ema = {name: tensor + 1 for name, tensor in state.items()}
    path = save({"model_ema": ema, "model": state}, tmp_path)
    backbone = load_backbone("glyph", weights=path)
    assert backbone.origin.note == "read from the state dict model; to read another one, give backbone.weights_key=..., such as model_ema"
    assert loads(path, state) and loads(path, ema, weights_key="model_ema")
    both = save({"state_dict": {**under("net.", state), **under("ema_net.module.", ema)}}, tmp_path, "lightning.ckpt")
    assert loads(both, state) and loads(both, ema, weights_key="state_dict.ema_net")
    with pytest.raises(
        UserError, match=r"no weights of this network under backbone.weights_key=model_em: give backbone.weights_key=model_ema \(keys"
    ):
        load_backbone("glyph", weights=path, weights_key="model_em")
    with pytest.raises(UserError, match=r"weights_key=ema selects weights in a file, but backbone.weights=default is not a file"):
        load_backbone("glyph", weights_key="ema")


class Unknown:
    """A class that no list of safe classes has."""


def test_values_beside_the_weights_are_ignored_and_their_code_does_not_run(state, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, output=Path("out")),
        "best": np.float64(0.9),
        "epoch": np.int64(3),
        "history": np.arange(3.0),
    }
    assert loads(save({"state_dict": state, **beside}, tmp_path), state)
    with pytest.raises(UserError, match=r"the file contains an object of .*test_weight_files\.Unknown, which is not loaded"):
        load_backbone("glyph", weights=save({"state_dict": state, "trainer": Unknown()}, tmp_path))


def test_the_error_names_the_keys_of_the_file(tmp_path):
    path = save({"generator": {"a.weight": torch.ones(2)}, "critic": {"b.weight": torch.ones(2)}}, tmp_path)
    with pytest.raises(
        UserError, match=r"are of another network.*to read only a part of .*w.pth, give backbone.weights_key=NAME \(generator, critic"
    ):
        load_backbone("glyph", weights=path)
    with pytest.raises(UserError, match=r"contains no weights; its entries are 'epoch', 'lr'"):
        load_backbone("glyph", weights=save({"epoch": 3, "lr": 0.1}, tmp_path))


def checkpoint(state, folder, **facts):
    """A checkpoint as a run of ftlit leaves it."""
    arguments = {"name": "glyph", "cut": facts.pop("cut", "layer4"), "input_spec": asdict(InputSpec(size=24, mean=0.5, std=0.25))}
    arguments |= facts.pop("arguments", {})
    record = {"backbone": {"name": "torchvision", "arguments": arguments}, "affine": False, "base": None, **facts}
    return save({"state_dict": under("backbone.", state), "ftlit": record}, folder, "best.ckpt")


def test_the_input_spec_of_a_run_goes_with_its_weights(state, tmp_path):
    path = checkpoint(state, tmp_path)
    spec = load_backbone("glyph", weights=path).input_spec
    assert (spec.size, spec.mean, spec.std) == (24, (0.5,) * 3, (0.25,) * 3)
    spec = load_backbone("glyph", weights=path, input_spec={"mean": 0.1}).input_spec
    assert (spec.size, spec.mean, spec.std) == (24, (0.1,) * 3, (0.25,) * 3)
    assert load_backbone("glyph", weights=checkpoint(state, tmp_path, grey_range=[0, 4095])).input_spec.grey_range == (0, 4095)


def test_the_error_for_a_runs_checkpoint_that_does_not_fit_says_what_it_is(state, tmp_path):
    lower = {name: tensor for name, tensor in state.items() if not name.startswith("layer4")}
    affine = {name: tensor for name, tensor in lower.items() if "running" not in name}
    for given, facts, line in [
        (
            lower,
            {"cut": "layer3"},
            r"^.*best.ckpt is from a run with backbone.cut=layer3, so it lacks the layers above: give backbone.cut=layer3$",
        ),
        (lower, {"base": {"digest": ""}}, r"a slim checkpoint, so it has only the tensors that the run changed: .*ftlit\.load\("),
        (
            affine,
            {"affine": True},
            r"from a run with batchnorm=affine, which folded the BatchNorm layers into y = a x \+ b: .*affine_to_batchnorm\(",
        ),
        (affine, {"arguments": {"name": "resnet18"}}, r"from a run with another network: use backbone=resnet18"),
    ]:
        with pytest.raises(UserError, match=line):
            load_backbone("glyph", weights=checkpoint(given, tmp_path, **facts))


def test_what_is_not_a_weights_file_is_an_error_with_what_to_give(state, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    best = save(state, tmp_path / "run" / "checkpoints", "best.ckpt")
    for weights, line in [
        (tmp_path / "run", f"is the folder of a run: use backbone.weights={best}"),
        (best.parent, f"such as resnet18.ckpt: give the file in it, backbone.weights={best}"),
        ("https://example.org/a/w.pth?raw=1", "use backbone.weights=w.pth"),
        ("ImageNet", "backbone.weights=ImageNet is not the name of weights: give backbone.weights=default"),
        ("none", "backbone.weights=none is not the name of weights: give backbone.weights=null"),
    ]:
        with pytest.raises(UserError) as error:
            find(weights, {})
        assert str(error.value).endswith(line) or line in str(error.value)


def test_safetensors_are_recognised_under_any_name(state, tmp_path):
    save_file(state, tmp_path / "w.pth")
    assert loads(tmp_path / "w.pth", state)


def test_files_that_hold_no_weights_say_what_they_are(state, tmp_path):
    (tmp_path / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "script.pth")
    whole = {name: (tensor * 100).to(torch.int8) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for path, line in [
        (tmp_path / "lfs.pth", "a pointer of Git LFS in place of the weights; run `git lfs pull`"),
        (tmp_path / "script.pth", "it is a TorchScript archive"),
        (save(whole, tmp_path, "int8.pth"), "has int8 in place of floats"),
        (
            save({name: torch.zeros_like(tensor) for name, tensor in state.items()}, tmp_path, "zero.pth"),
            "in every matrix all numbers are equal",
        ),
    ]:
        with pytest.raises(UserError, match=re.escape(line)):
            load_backbone("glyph", weights=path)
