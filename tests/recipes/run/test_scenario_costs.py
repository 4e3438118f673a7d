"""The estimates of `scenario=auto` recognise a linear probe by the head that is built."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from ftlit.models.heads import LinearProbeHead, MLPHead
from ftlit.recipes.run.scenario_costs import has_probe_head


def make_probe(in_features, num_classes):
    return LinearProbeHead(in_features, num_classes)


def make_for_96_features(in_features, num_classes):
    raise ValueError(f"only 96 features, not {in_features}")


partial_probe = partial(LinearProbeHead)
partial_mlp = partial(MLPHead, hidden=[4])


@pytest.mark.parametrize(
    ("target", "expected"), [("make_probe", True), ("partial_probe", True), ("partial_mlp", False), ("make_for_96_features", False)]
)
def test_the_head_that_a_factory_returns_decides_whether_it_is_a_linear_probe(target, expected):
    torch.manual_seed(0)
    assert has_probe_head(OmegaConf.create({"head": {"_target_": f"{__name__}.{target}"}})) is expected
    numbers = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), numbers)
