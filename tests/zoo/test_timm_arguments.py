"""What is refused at prediction is refused before training, by the same rule."""

import pytest

from ftlit import UserError, load_timm
from ftlit.inference.record_checks import BadRecord
from ftlit.inference.record_checks import _check_arguments as check_in_record
from ftlit.zoo.timm_arguments import refused_arguments

PLAIN = {
    "bn_eps": 1e-3,
    "bn_momentum": 0.1,
    "drop_rate": 0.1,
    "drop_path_rate": 0.1,
    "act_layer": "gelu",
    "layers": [2, 2],
    "qkv_bias": True,
}
REFUSED = {
    "act_layer": "os.system",
    "norm_layer": "a/b",
    "kernel": "name",
    "model_cfg": {"file": "x"},
    "cache_dir": "x",
    "pretrained": True,
}


@pytest.mark.parametrize(("name", "value"), [*PLAIN.items(), *REFUSED.items()])
def test_training_and_prediction_refuse_the_same_arguments(name, value):
    refused = bool(refused_arguments({name: value}))
    assert refused == (PLAIN.get(name) != value)
    try:
        check_in_record("backbone", {"name": "timm", "arguments": {"name": "resnet18", name: value}})
    except BadRecord:
        assert refused
    else:
        assert not refused


def test_a_refused_argument_is_one_line_before_anything_is_built():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"resnet18 does not accept backbone.act_layer='os.system': give the name of a layer"):
        load_timm("resnet18", weights=None, act_layer="os.system")
