"""A network of one's own predicts in evaluation mode, and its head suits its backbone and its class names."""

import pytest
import torch
from torch import nn

from ftlit import Backbone, InputSpec, Network, UserError, export_run

NAMES = ["cat", "dog", "owl"]


def layers():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))


def backbone():
    return Backbone({"stem": layers()}, InputSpec(size=8))


def network(head, names=NAMES):
    return Network(backbone().train(), head, names, multilabel=False)


def test_a_module_in_training_mode_predicts_as_in_evaluation_mode_and_keeps_its_statistics(tmp_path):
    own = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    found, image = network(own), torch.rand(3, 9, 12)
    before = {name: value.clone() for name, value in found.backbone.state_dict().items()}
    first, second = found(image), found(image)
    assert first.probabilities == second.probabilities and found.head is own
    export_run(found, "torch", tmp_path / "net.pt2")
    assert all(torch.equal(value, before[name]) for name, value in found.backbone.state_dict().items())
    assert not any(part.training for shared in (found.backbone, own) for part in shared.modules())


@pytest.mark.parametrize("head", [nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), nn.Sequential(nn.ReLU())])
@pytest.mark.parametrize("names", [["cat", "dog"], [*NAMES, "yak", "emu", "eel"]])
def test_another_number_of_names_than_of_outputs_is_an_error_of_one_line(head, names):
    outputs = 5 if isinstance(head[-1] if isinstance(head, nn.Sequential) else head, nn.ReLU) else 3
    with pytest.raises(UserError, match=rf"^the head of this Network has {outputs} outputs, but class_names has {len(names)} names \(cat,"):
        network(head, names)(torch.rand(3, 8, 8))  # a head that does not end with a linear layer: at the first prediction


def test_a_linear_layer_shows_the_number_of_outputs_before_any_prediction():
    with pytest.raises(UserError, match=r"has 3 outputs, but class_names has 1 name \(cat\): give one name for each output$"):
        network(nn.Linear(5, 3), ["cat"])


@pytest.mark.parametrize("head", [nn.Linear(7, 3), nn.Sequential(nn.Dropout(0.2), nn.Linear(7, 3))])
def test_a_head_of_another_width_than_the_backbone_is_an_error_of_one_line(head, tmp_path):
    wanted = r"^the head of this Network takes 7 features, but the backbone gives 5: give a head such as nn\.Linear\(5, 3\)$"
    with pytest.raises(UserError, match=wanted):
        network(head)(torch.rand(3, 8, 8))
    with pytest.raises(UserError, match=wanted):
        export_run(network(head), "torch", tmp_path / "net.pt2")
