"""Maps of the difference of two logits: their mean is the difference, and each position has its own part."""

import pytest
import torch
from torch import nn

from ftlit import Backbone, InputSpec
from ftlit.models.class_maps import logit_difference_maps
from ftlit.models.heads import LinearHead, MLPHead, features_for, logits_of

FIRST, SECOND = torch.tensor([0, 2, 1]), torch.tensor([1, 0, 1])


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    low, top = nn.Conv2d(3, 8, 3, stride=2), nn.Sequential(nn.Conv2d(8, 6, 3, stride=2), nn.ReLU())
    return Backbone({"low": low, "top": top, "vector": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}, InputSpec(size=21)).eval()


def head_on(backbone, cuts, **options):
    widths = [{"low": 8, "top": 6}[cut] for cut in cuts]
    return LinearHead(widths, 3, cuts=cuts, **options) if len(cuts) > 1 else LinearHead(widths[0], 3)


@pytest.mark.parametrize("cuts", [("top",), ("low", "top")])
@torch.inference_mode()
def test_the_mean_of_a_map_and_the_biases_are_the_difference_of_the_logits(backbone, cuts):
    backbone, x = backbone.upto("top"), torch.randn(3, 3, 21, 21)
    head = head_on(backbone, cuts)
    maps, logits = logit_difference_maps(backbone, head, x, FIRST, SECOND), logits_of(head, features_for(head, backbone, x))
    rows = torch.arange(3)
    expected = logits[rows, FIRST] - logits[rows, SECOND]
    assert torch.allclose(maps.mean(dim=(1, 2)) + head.bias[FIRST] - head.bias[SECOND], expected, atol=1e-5)
    assert maps[2].abs().max() == 0 and maps[0].std() > 0  # the third has one class twice
    assert tuple(maps.shape[1:]) == ((10, 10) if "low" in cuts else (4, 4))


@torch.inference_mode()
def test_a_change_of_one_corner_of_the_image_changes_that_corner_of_the_map(backbone):
    backbone, x = backbone.upto("top"), torch.randn(1, 3, 21, 21)
    head = head_on(backbone, ("top",))
    other = x.clone()
    other[..., :4, :4] += 1
    before, after = (logit_difference_maps(backbone, head, own, FIRST[:1], SECOND[:1])[0] for own in (x, other))
    changed = (before - after).abs() > 1e-6
    assert changed[0, 0] and changed.sum() == 1


@torch.inference_mode()
def test_logits_that_are_no_sum_over_positions_have_no_map(backbone):
    x, low = torch.randn(3, 3, 21, 21), backbone.upto("top")
    average = head_on(low, ("low", "top"), combine="average")
    assert logit_difference_maps(low, average, x, FIRST, SECOND) is None
    assert logit_difference_maps(low, MLPHead(6, 3), x, FIRST, SECOND) is None
    assert logit_difference_maps(backbone, LinearHead(6, 3), x, FIRST, SECOND) is None  # vectors
