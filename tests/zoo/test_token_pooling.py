"""`backbone.pooling`: widths, values and keys of features follow it, a run records it, and networks without such tokens are errors."""

import pytest
import torch
from omegaconf import OmegaConf
from text_inputs import save_model

from ftlit.errors import UserError
from ftlit.features.keys import feature_keys
from ftlit.features.spec import FeatureSpec
from ftlit.finetuning.presets import head_only
from ftlit.models.pooling import TOKEN_POOLINGS
from ftlit.recipes.run.head import head_arguments
from ftlit.zoo import load_backbone, load_bert, load_timm

pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return str(save_model(tmp_path_factory.mktemp("model")))


@torch.no_grad()
def test_texts_are_pooled_as_asked_without_padding(folder):
    ids = torch.tensor([[2, 5, 6, 3], [2, 3, 0, 0]])
    for pooling, width in {"class_token": 16, "mean": 16, "class_token_mean": 32}.items():
        backbone = load_bert(folder, max_length=4, cut="encoder.1", pooling=pooling).eval()
        tokens = backbone(ids)
        first, mean = tokens[:, 0], torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0)])
        expected = {"class_token": first, "mean": mean, "class_token_mean": torch.cat([first, mean], dim=1)}[pooling]
        torch.testing.assert_close(backbone.pool(tokens), expected)
        assert backbone.num_features == width == backbone.pool(tokens).shape[1]
        largest = torch.stack([tokens[0].amax(0), tokens[1, :2].amax(0)])
        torch.testing.assert_close(backbone.pool(tokens, "max"), largest)


def test_each_pooling_has_its_own_feature_table(folder):
    keys = []
    for pooling in (None, *TOKEN_POOLINGS):
        backbone = load_bert(folder, max_length=4, cut="encoder.1", pooling=pooling)
        spec = FeatureSpec("encoder.1", "average")
        (key,) = feature_keys(backbone, [spec], view="view", size=(4,), dtype=torch.float32).values()
        assert key.shape == (backbone.num_features,)
        keys.append(key.digest)
    assert len(set(keys)) == 3 and keys[0] == keys[TOKEN_POOLINGS.index("mean") + 1]  # the mean is how texts are pooled anyway


@torch.no_grad()
def test_a_vit_is_pooled_as_asked():
    backbone = load_timm("test_vit", weights=None, pooling="class_token_mean").eval()
    images = torch.rand(2, *backbone.input_spec.shape)
    tokens = backbone(images)
    torch.testing.assert_close(backbone.pool(tokens), torch.cat([tokens[:, 0], tokens.mean(1)], dim=1))
    assert backbone.upto(-1).num_features == backbone.num_features == 2 * tokens.shape[2]
    assert backbone.record["pooling"] == "class_token_mean" and "pooling" not in load_timm("test_vit", weights=None).record


def test_poolings_that_do_not_apply_are_errors(folder):
    for load, line in [
        (lambda: load_bert(folder, max_length=4, pooling="mean"), "features at pooler are vectors: give backbone.cut=encoder.1"),
        (lambda: load_backbone("glyph", pooling="mean"), "no cut of this network gives tokens; leave backbone.pooling out"),
        (lambda: load_bert(folder, cut="encoder.1", max_length=4, pooling="clas_token"), "did you mean 'class_token'"),
        (lambda: load_timm("mixer_s32_224", weights=None, pooling="class_token"), "does not use a class token; give"),
    ]:
        with pytest.raises(UserError, match=line):
            load()


def test_a_pooling_beside_a_head_that_pools_by_itself_is_an_error(folder):
    backbone = load_bert(folder, max_length=4, cut="encoder.1", pooling="mean")
    cfg = OmegaConf.create({"head": {"_target_": "ftlit.models.heads.AttentionHead"}, "backbone": {"pooling": "mean"}})
    with pytest.raises(UserError, match=r"backbone.pooling=mean has no effect on AttentionHead, which pools by itself: leave one"):
        head_arguments(cfg, backbone, head_only(backbone.cuts))
