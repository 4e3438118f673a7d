"""Heads: outputs, shapes and errors."""

import pytest
import torch
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError
from ftlit.models.backbone import Backbone
from ftlit.models.feature_batch import FeatureBatch
from ftlit.models.heads import AttentionHead, ConvHead, LinearHead, MLPHead, features_for, head_cuts, logits_of
from ftlit.models.pooling import pool

VECTORS, MAPS, TOKENS = torch.randn(5, 6), torch.randn(5, 6, 3, 4), torch.randn(5, 7, 6)


def test_linear_is_one_linear_layer():
    head = LinearHead(6, 3)
    torch.testing.assert_close(head(VECTORS), VECTORS @ head.weight.T + head.bias)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {"weight": (3, 6), "bias": (3,)}


@pytest.mark.parametrize("hidden", [[], [4], [8, 4, 2]])
def test_mlp_is_linear_relu_for_each_width_and_a_linear_layer_at_the_end(hidden):
    head = MLPHead(6, 3, hidden=hidden).eval()
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == list(zip([6, *hidden], [*hidden, 3], strict=True))
    expected = VECTORS
    for linear in linears[:-1]:
        expected = linear(expected).relu()
    assert torch.equal(head(VECTORS), linears[-1](expected))


def test_mlp_applies_dropout_in_training_mode_only():
    head = MLPHead(6, 3, hidden=[64], dropout=0.5)
    assert not torch.equal(head(VECTORS), head(VECTORS))
    assert torch.equal(head.eval()(VECTORS), head(VECTORS))
    never = MLPHead(6, 3, hidden=[64], dropout=0)
    assert torch.equal(never(VECTORS), never(VECTORS))


@pytest.mark.parametrize(("hidden", "dropout"), [([0], 0.2), ([4, -1], 0.2), ([4], 1.0), ([4], -0.1), ([], 2.0)])
def test_mlp_errors_give_the_valid_widths_and_dropout(hidden, dropout):
    with pytest.raises(UserError, match=r"give hidden widths of 1 or more, and a dropout of at least 0 and below 1"):
        MLPHead(6, 3, hidden=hidden, dropout=dropout)


def test_conv_averages_over_positions_after_the_convolution():
    head = ConvHead(6, 3, channels=8).eval()
    convolution, norm, _ = head.conv
    expected = head.linear(norm(convolution(MAPS)).relu().mean((2, 3)))
    assert torch.equal(head(MAPS), expected) and expected.shape == (5, 3)
    assert (convolution.kernel_size, convolution.out_channels) == ((3, 3), 8)
    assert head(MAPS[:, :, :1, :1]).shape == (5, 3)  # a map of one position is a map


@pytest.mark.parametrize(("features", "shape"), [(VECTORS, r"\(6,\)"), (TOKENS, r"\(7, 6\)")])
def test_the_conv_error_for_features_that_are_no_map_gives_a_remedy(features, shape):
    with pytest.raises(
        UserError,
        match=f"needs feature maps, but backbone.cut gives features of shape {shape}: give backbone.cut=... with a lower",
    ):
        ConvHead(6, 3)(features)


@pytest.mark.parametrize("features", [MAPS, TOKENS])
def test_attention_is_a_mean_at_first_and_then_weighs_the_positions(features):
    head = AttentionHead(6, 3)
    torch.testing.assert_close(head(features), head.linear(pool(features)))
    tokens = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    nn.init.normal_(head.query, std=10)
    best = ((tokens - tokens.mean(2, keepdim=True)) / tokens.std(2, correction=0)[..., None] @ head.query).argmax(1)
    head.query.data *= 1e4  # all the weight on one position
    torch.testing.assert_close(head(features), head.linear(tokens[range(5), best]))


def test_attention_to_texts_leaves_padding_out():
    head = AttentionHead(6, 3)
    nn.init.normal_(head.query, std=3)
    torch.testing.assert_close(head(nn.functional.pad(TOKENS, (0, 0, 0, 4))), head(TOKENS))
    assert head(torch.zeros(2, 3, 6)).isfinite().all()  # a text without a token


def test_attention_learns_which_token_tells_the_class():
    torch.manual_seed(0)
    labels, tokens = torch.arange(64) % 2, torch.randn(64, 12, 6)
    places = torch.randint(12, (64,))
    tokens[range(64), places, 5], tokens[range(64), places, 0] = 8.0, 4.0 * labels - 2
    losses = []
    for head in (AttentionHead(6, 2), LinearHead(6, 2)):
        optimizer = torch.optim.AdamW(head.parameters(), lr=0.05)
        for _ in range(100):
            loss = nn.functional.cross_entropy(head(tokens if isinstance(head, AttentionHead) else tokens.mean(1)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 0.05 < 0.2 < losses[1]


def test_attention_to_vectors_is_an_error():
    with pytest.raises(UserError, match=r"needs tokens or maps, not vectors: give backbone.cut=... with a lower layer, or head=linear"):
        AttentionHead(6, 3)(VECTORS)


@pytest.mark.parametrize(("channels", "dropout"), [(0, 0.0), (8, 1.0), (8, -0.1)])
def test_conv_errors_give_the_valid_channels_and_dropout(channels, dropout):
    with pytest.raises(UserError, match=r"give channels of 1 or more, and dropout in \[0, 1\)"):
        ConvHead(6, 3, channels=channels, dropout=dropout)


def test_only_conv_takes_unpooled_features():
    assert [getattr(head(6, 3), "takes_map", False) for head in (LinearHead, MLPHead, ConvHead, AttentionHead)] == [
        False,
        False,
        True,
        True,
    ]


def test_a_head_gets_pooled_features_unless_it_takes_maps():
    linear, conv, pooled = LinearHead(6, 3), ConvHead(6, 3).eval(), MAPS.mean(dim=(2, 3))
    backbone = Backbone({"layer": nn.Conv2d(3, 6, 1)}, InputSpec(size=4))
    at_cut = FeatureBatch({"layer": MAPS})
    assert torch.equal(*features_for(linear, backbone, at_cut), pooled) and torch.equal(logits_of(linear, [pooled]), linear(pooled))
    assert torch.equal(*features_for(conv, backbone, at_cut), MAPS) and torch.equal(logits_of(conv, [MAPS]), conv(MAPS))


def test_a_linear_head_on_several_cuts_is_one_layer_on_all_features_or_the_mean_of_the_probabilities_of_one_for_each():
    features = [torch.randn(5, 6), torch.randn(5, 2)]
    concat = LinearHead([6, 2], 3, cuts=["low", "top"])
    torch.testing.assert_close(concat(*features), torch.cat(features, dim=1) @ concat.weight.T + concat.bias)
    average = LinearHead([6, 2], 3, cuts=["low", "top"], combine="average")
    weights = average.weight.split([6, 2], dim=1)
    each = [x @ weight.T + bias for x, weight, bias in zip(features, weights, average.bias.view(2, 3), strict=True)]
    torch.testing.assert_close(average(*features).softmax(dim=1), sum(own.softmax(dim=1) for own in each) / 2)


class ListedCuts(nn.Module):
    """A head of one's own whose cuts are a list."""

    cuts = ["low", "top"]  # noqa: RUF012

    def forward(self, low, top):
        return low[:, :2] + top[:, :2]


def test_a_head_of_ones_own_reads_the_cuts_that_it_names_in_a_tuple_or_a_list():
    backbone = Backbone({"low": nn.Conv2d(3, 4, 1), "top": nn.Conv2d(4, 2, 1)}, InputSpec(size=4))
    head, images = ListedCuts(), torch.randn(5, 3, 4, 4)
    assert head_cuts(nn.ModuleDict({"backbone": backbone, "head": head})) == ("low", "top")
    low, top = (backbone.pool(backbone.upto(cut)(images)) for cut in ("low", "top"))
    assert torch.equal(logits_of(head, features_for(head, backbone, images)), head(low, top))


def test_other_numbers_of_cuts_and_lengths_and_an_unknown_combine_are_errors():
    with pytest.raises(UserError, match=r"in_features=6 does not fit a linear head on 2 cuts: give a list of 2 numbers, one per cut"):
        LinearHead(6, 3, cuts=["low", "top"])
    with pytest.raises(UserError, match=r"head\.combine=concatenate is not valid: did you mean 'concat'"):
        LinearHead(6, 3, combine="concatenate")
