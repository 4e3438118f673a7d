"""The record of a network in its checkpoint: parts by registry name or import path, and the record of format 0 (invariant 13)."""

import pytest
from omegaconf import OmegaConf
from torch import nn

from ftlit import Backbone, InputSpec, load_backbone
from ftlit.errors import UserError
from ftlit.inference.record import KEY, build_backbone, read_record, record_of
from ftlit.models.heads import HEADS, LinearProbeHead, MLPHead, is_linear_probe
from ftlit.recipes.run.time_estimates import has_probe_head
from ftlit.zoo import BACKBONES


def test_containers_of_omegaconf_are_recorded_as_lists():
    backbone = load_backbone("mlp", weights=None, hidden=OmegaConf.create([8]), input_spec={"size": 8})
    head = {"_target_": "ftlit.models.heads.MLPHead", "hidden": OmegaConf.create([3])}
    record = record_of(backbone, {}, head, class_names=["a", "b"], multilabel=False, affine=False)
    assert record["backbone"]["arguments"]["hidden"] == [8] and record["head"]["arguments"]["hidden"] == [3]


def test_a_linear_probe_head_is_recorded_as_a_linear_head():
    head = {"_target_": "ftlit.models.heads.LinearProbeHead"}
    record = record_of(load_backbone("glyph", weights=None), {}, head, class_names=["a"], multilabel=False, affine=False)
    assert record["head"]["name"] == "linear"


class UserHead(LinearProbeHead):
    """A user's subclass of a built-in head."""


def test_a_users_subclass_of_a_built_in_head_is_recorded_by_its_import_path():
    head = {"_target_": f"{__name__}.UserHead"}
    record = record_of(load_backbone("glyph", weights=None), {}, head, class_names=["a"], multilabel=False, affine=False)
    assert record["head"]["import"] == f"{__name__}.UserHead"


def test_subclasses_of_the_linear_probe_head_count_as_linear_probes():
    for target, expected in ((UserHead, True), (LinearProbeHead, True), (MLPHead, False)):
        assert is_linear_probe(target) is has_probe_head(OmegaConf.create({"head": {"_target_": f"{target.__module__}.{target.__name__}"}}))
        assert is_linear_probe(target) is expected


BACKBONES_OF_0 = {
    "glyph": ({"loader": "load_backbone", "name": "glyph", "reinit": "['top']"}, "torchvision", {"name": "glyph", "reinit": ["top"]}),
    "timm": ({"loader": "load_timm", "name": "resnet18"}, "timm", {"name": "resnet18"}),
    "bert": ({"loader": "load_bert", "name": "tiny", "max_length": 32}, "bert", {"name": "tiny", "max_length": 32}),
}
HEADS_OF_0 = {"LinearHead": "linear", "SolvedLinearHead": "linear", "PooledHead": "pooled", "MLPHead": "mlp", "ConvHead": "conv"}


@pytest.mark.parametrize("backbone", BACKBONES_OF_0)
@pytest.mark.parametrize("head", HEADS_OF_0)
def test_a_record_of_format_0_names_built_in_parts_by_their_registry_names(backbone, head):
    written, loader, arguments = BACKBONES_OF_0[backbone]
    old_head = {"_target_": f"ftlit.head.{head}", "in_features": 8, "hidden": "[4, 2]"}
    record = {"backbone": written, "affine": True, "head": old_head, "class_names": ["a", "b"], "multilabel": True}
    assert read_record({KEY: record}) == {
        "backbone": {"name": loader, "arguments": arguments},
        "affine": True,
        "head": {"name": HEADS_OF_0[head], "arguments": {"in_features": 8, "hidden": [4, 2]}},
        "loss": None,
        "class_names": ["a", "b"],
        "multilabel": True,
    }
    assert loader in BACKBONES and HEADS_OF_0[head] in HEADS


def test_custom_parts_of_a_record_of_format_0_keep_their_import_paths():
    record = {"backbone": {"_target_": "users_code.net", "width": 8}, "affine": False, "head": {"_target_": "users_code.Head"}}
    read_again = read_record({KEY: record})
    assert read_again["backbone"] == {"import": "users_code.net", "arguments": {"width": 8}}
    assert read_again["head"] == {"import": "users_code.Head", "arguments": {}}


def backbone_of_a_file(weights: str) -> Backbone:
    raise FileNotFoundError(f"no file {weights}")


def test_a_custom_backbone_whose_weights_file_has_moved_is_an_error_in_one_line():
    own = {"_target_": f"{__name__}.backbone_of_a_file", "weights": "gone.pt"}
    head = {"_target_": "ftlit.models.heads.LinearHead"}
    backbone = Backbone({"layer": nn.Flatten()}, InputSpec(size=1))
    record = record_of(backbone, own, head, class_names=["a", "b"], multilabel=False, affine=False)
    with pytest.raises(UserError, match=r"backbone_of_a_file cannot be built with \{'weights': 'gone.pt'\}: .*no file gone.pt"):
        build_backbone(record, trust=True)
