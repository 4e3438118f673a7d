"""A record may come from anyone: what it asks for is checked before anything is built."""

import pytest
import torch

from ftlit import UserError, load
from ftlit.formats import with_format
from ftlit.inference.record import KEY
from ftlit.inference.record_checks import BadRecord, LimitedAllocation, check_record
from ftlit.recipes.checks.ranges import RANGES

NAMES = ["ant", "bee", "fly"]


def record(*, name="mlp", loader="torchvision", head=None, names=NAMES, **arguments) -> dict:
    spec = {"size": 8, "resize": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    part = {"name": loader, "arguments": {"name": name, "weights": None, "input_spec": spec, "cut": None, "reinit": [], **arguments}}
    if name == "mlp":
        part["arguments"] = {"hidden": [4], **part["arguments"]}
    own = {"name": "linear", "arguments": {"in_features": 4, **(head or {})}}
    content = {"backbone": part, "affine": False, "head": own, "loss": None, "class_names": names, "multilabel": False}
    return with_format(content)


@pytest.mark.parametrize("end", ["least", "most"])
@pytest.mark.parametrize("option", [name for name in RANGES if name.startswith(("backbone.", "head."))])
def test_a_number_that_the_config_accepts_is_accepted_in_a_record(option, end):
    allowed, (group, *path, name) = RANGES[option], option.split(".")
    number = getattr(allowed, end)
    number = allowed.least + allowed.most / 2 if allowed.open in (end, "both") else number
    content = record(name="any")
    arguments = content[group]["arguments"]
    for inner in path:
        arguments = arguments[inner]
    arguments[name] = [number] * 2
    check_record(content, trust=False)


def saved(folder, content, state=None):
    weights = {"backbone.layer1.0.weight": torch.zeros(4, 192)} if state is None else state
    torch.save({KEY: content, "state_dict": weights, "pytorch-lightning_version": "2.6.6"}, folder / "x.ckpt")
    return folder / "x.ckpt"


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", 3], "abc", {"a": 1}, [["a"], "b"], None])
def test_class_names_are_different_texts(tmp_path, names):
    with pytest.raises(UserError, match="class names are not a list of distinct texts") as caught:
        load(saved(tmp_path, record(names=names)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"head": {"num_classes": 4}}, "4 outputs, but there are 3 classes"),
        ({"hidden": [1 << 40]}, "short texts, true, false and null: if you trust"),
        ({"hidden": [float("nan")]}, "short texts, true, false and null: if you trust"),
        ({"hidden": list(range(5000))}, "short texts, true, false and null: if you trust"),
        (
            {"hidden": [1 << 19, 1 << 19]},
            "the network has far more parameters than the file has weights, and may use up the memory",
        ),
        ({"input_spec": {"size": 1 << 15}}, "above the limit of 8192"),
        ({"input_spec": {"size": 8, "resize": 1 << 15}}, "the backbone has input_spec.resize=32768, above the limit of 8192 pixels"),
        (
            {"loader": "timm", "name": "resnet18", "pretrained_cfg_overlay": {"file": "evil.pth"}},
            "which ftlit accepts only from a trusted file: ",
        ),
        ({"loader": "timm", "name": "resnet18", "checkpoint_path": "evil.pth"}, "which ftlit accepts only from a trusted file: "),
        ({"loader": "timm", "name": "resnet18", "cache_dir": "/"}, "which ftlit accepts only from a trusted file: "),
        (
            {"loader": "bert", "name": "tiny", "attn_implementation": "someone/kernel"},
            "which ftlit accepts only from a trusted file: ",
        ),
        ({"loader": "bert", "name": "tiny", "download": True}, "is not in the local Hugging Face cache: add --trust"),
        ({"progress": True}, "mlp has no argument 'progress'"),
        ({"head": {"hidden": [1 << 40]}}, "short texts, true, false and null: if you trust"),
    ],
)
def test_what_a_record_asks_for_is_checked_before_anything_is_built(tmp_path, given, text):
    with pytest.raises(UserError, match=text) as caught:
        load(saved(tmp_path, record(**given)))
    assert "\n" not in str(caught.value)


def test_trust_lets_arguments_through():
    check_record(record(loader="timm", name="resnet18", some_new_argument=3), trust=True)
    check_record(record(loader="timm", name="resnet18", drop_rate=0.1, act_layer="gelu", bn_eps=1e-3, bn_momentum=0.1), trust=False)
    check_record(record(loader="bert", name="tiny", max_length=32, hidden_dropout_prob=0.0), trust=False)


@pytest.mark.parametrize("part", ["backbone", "head", "class_names", "affine", "multilabel"])
@pytest.mark.parametrize("value", [None, 3, "x", []])
def test_a_field_of_another_kind_is_one_line(tmp_path, part, value):
    with pytest.raises(UserError) as caught:
        load(saved(tmp_path, {**record(), part: value}))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_allocation_is_limited_before_memory_is_taken():
    with pytest.raises(BadRecord, match="far more parameters"), LimitedAllocation({}, {}):
        torch.nn.Linear(1 << 20, 1 << 20)
    with LimitedAllocation({}, {}), torch.device("meta"):
        torch.nn.Linear(1 << 20, 1 << 20)  # takes no memory
    with LimitedAllocation({}, {}):
        assert torch.equal(torch.nn.Linear(2, 3).weight.new_zeros(2), torch.zeros(2))
