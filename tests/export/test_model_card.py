"""What a model card takes from the folder of a run."""

import pytest
from torch import nn

from ftlit import Backbone, InputSpec, Network, WeightsOrigin, export_run
from ftlit.export.model_card import facts_of
from ftlit.formats import write_json


def test_a_run_of_a_custom_data_module_records_no_images(tmp_path):
    write_json(tmp_path / "data.json", {"run": "0123"})
    assert facts_of(tmp_path).images == {}


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (WeightsOrigin("torchvision", "IMAGENET1K_V1"), "not stated by torchvision for its weights (torchvision IMAGENET1K_V1), only for"),
        (WeightsOrigin("file", "/home/me/mine.pth"), "pretrained weights: file mine.pth; fill in their licence"),
        (WeightsOrigin(), "pretrained weights: not known; fill in their licence"),  # nobody has said that they are random
    ],
)
def test_the_card_of_a_network_of_ones_own_has_the_origin_that_its_backbone_states(origin, words, tmp_path):
    backbone = Backbone({"stem": nn.Conv2d(3, 5, 3)}, InputSpec(size=8), origin=origin)
    export_run(Network(backbone, nn.Linear(5, 2), ["ants", "bees"], multilabel=False), "torch", tmp_path / "net.pt2")
    assert f"| licence of the weights | {words}" in (tmp_path / "README.md").read_text()
