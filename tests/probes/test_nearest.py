"""The training examples nearest to others: cosine similarity of standardised features."""

import numpy as np
import pytest
import torch
from torch import nn

from ftlit import Backbone, InputSpec, extract_features
from ftlit.probes import nearest
from ftlit.probes.nearest import TrainVectors


@pytest.fixture
def features(tmp_path):
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()), "top": nn.Conv2d(4, 6, 2)}, InputSpec(size=6))
    return extract_features(backbone, [torch.rand(20, 3, 6, 6)], ["low", "top"], cache=tmp_path / "store")


def test_the_nearest_have_the_largest_cosine_of_standardised_features(features):
    train = TrainVectors.of(features, "top")
    vectors, queries = train.vectors.double().numpy(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    standard, asked = ((own - vectors.mean(axis=0)) / vectors.std(axis=0) for own in (vectors, queries.double().numpy()))
    cosine = (asked / np.linalg.norm(asked, axis=1, keepdims=True)) @ (standard / np.linalg.norm(standard, axis=1, keepdims=True)).T
    assert train.nearest(queries, 3).tolist() == np.argsort(-cosine, axis=1)[:, :3].tolist()


def test_an_example_of_the_training_images_is_its_own_nearest(features):
    train = TrainVectors.of(features, "low")
    assert train.nearest(train.vectors, 1)[:, 0].tolist() == list(range(20)) and train.nearest(train.vectors, 99).shape == (20, 20)


def test_features_that_would_fill_the_memory_are_not_kept(features, monkeypatch):
    monkeypatch.setattr(nearest, "MAX_NUMBERS", 20 * 6 - 1)
    assert TrainVectors.of(features, "top") is None and TrainVectors.of(features, "low") is not None
