"""A head that begins with the rows of an earlier one: known classes predict as before, new ones stand beside them as they were fitted."""

import pytest
import torch

from ftlit import UserError
from ftlit.models.heads import ConvHead, LinearHead, MLPHead
from ftlit.recipes.start.head_rows import copy_head, copy_rows, same_features

KNOWN = {0: 1, 2: 0}  # class 1 is new
FEATURES = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("how", [{}, {"cuts": ["a", "b"]}, {"cuts": ["a", "b"], "combine": "average"}], ids=["one cut", "two", "average"])
@pytest.mark.parametrize("aligned", [True, False])
def test_known_classes_have_the_logits_that_they_had(how, aligned):
    widths = [3, 1] if how else 4
    before, now = LinearHead(widths, 2, **how), LinearHead(widths, 3, **how)
    copy_rows(now, before, KNOWN, aligned=aligned)
    weights, bias = now.weight, now.bias.view(-1, 3)
    assert torch.equal(weights[[0, 2]], before.weight[[1, 0]]) and torch.equal(bias[:, [0, 2]], before.bias.view(-1, 2)[:, [1, 0]])


def test_if_the_old_rows_are_the_fitted_ones_moved_and_scaled_so_is_the_new_row():
    fitted = LinearHead(4, 3)
    moved = LinearHead(4, 3)
    with torch.no_grad():
        moved.weight.copy_(3 * fitted.weight + torch.arange(4.0))
        moved.bias.copy_(3 * fitted.bias - 7)
    before = LinearHead(4, 2)
    with torch.no_grad():
        before.weight.copy_(moved.weight[[2, 0]])
        before.bias.copy_(moved.bias[[2, 0]])
    copy_rows(fitted, before, KNOWN, aligned=True)
    assert torch.allclose(fitted(FEATURES), moved(FEATURES), atol=1e-5)


def test_rows_fit_only_where_the_same_features_are_read():
    top, named, two = LinearHead(4, 2), LinearHead(4, 2, cuts=["b"]), LinearHead([3, 1], 2, cuts=["a", "b"])
    assert same_features(top, named, "b") and not same_features(top, named, "a") and not same_features(top, two, "b")
    assert not same_features(two, LinearHead([3, 1], 2, cuts=["a", "b"], combine="average"), "b")
    assert not same_features(top, LinearHead(5, 2), "b") and not same_features(MLPHead(4, 2), top, "b")


@pytest.mark.parametrize("build", [lambda classes: MLPHead(4, classes, hidden=[3, 2]), lambda classes: ConvHead(4, classes, channels=3)])
def test_a_head_that_is_trained_keeps_its_layers_and_the_rows_of_known_classes(build):
    before, now = build(2).eval(), build(3).eval()
    copy_head(now, before, KNOWN, "run")
    inputs = FEATURES if isinstance(before, MLPHead) else FEATURES[:, :, None, None].expand(5, 4, 3, 3)
    assert torch.equal(now(inputs)[:, [0, 2]], before(inputs)[:, [1, 0]])


@pytest.mark.parametrize(
    "other", [MLPHead(4, 2, hidden=[5]), LinearHead(4, 2), MLPHead(5, 2, hidden=[3])], ids=["wider", "linear", "input"]
)
def test_another_head_is_refused(other):
    with pytest.raises(UserError, match="init_from=run: the head of that run"):
        copy_head(MLPHead(4, 3, hidden=[3]), other, KNOWN, "run")
