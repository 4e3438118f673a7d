"""Published weights of real networks load, and classify images of ImageNet."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models

from ftlit.data.transforms import eval_transform
from ftlit.errors import UserError
from ftlit.zoo import load_backbone
from ftlit.zoo.torchvision_layers import take_apart

DATA = os.environ.get("FTLIT_TEST_DATA")
NAME = "squeezenet1_1"

pytestmark = [pytest.mark.zoo, pytest.mark.skipif(not DATA, reason="FTLIT_TEST_DATA names no folder of test data")]


def test_real_squeezenet_recognises_imagenet():
    """The accuracy on the whole sample is 63.4 %, as with the transforms of torchvision; a wrong normalisation fails here."""
    backbone = load_backbone(NAME, weights=Path(DATA, "weights", "squeezenet1_1_imagenet_torchvision.pth")).eval()
    model = models.get_model(NAME, weights=None)
    model.load_state_dict(torch.load(Path(DATA, "weights", "squeezenet1_1_imagenet_torchvision.pth"), weights_only=True))
    classifier = take_apart(model.eval()).classifier
    files = sorted(Path(DATA, "images", "imagenet_sample").glob("*.jpg"))
    labels = range(0, len(files), 10)
    transform = eval_transform(backbone.input_spec)
    images = torch.stack([transform(Image.open(files[label]).convert("RGB")) for label in labels])
    with torch.inference_mode():
        guesses = classifier(backbone(images)).argmax(dim=1)
    assert len(labels) == 100
    assert (guesses == torch.tensor(labels)).sum() > 50


def test_real_mobilenet_weights_load():
    wide = Path(DATA, "weights", "mobilenetv2_imagenet_torchvision.pth")
    narrow = Path(DATA, "weights", "mobilenetv2_w035_imagenet_torchvision_nohead.pth")
    assert load_backbone("mobilenet_v2", weights=wide, input_spec={"mean": 0.5, "std": 0.5}).num_features == 1280
    assert load_backbone("mobilenet_v2", weights=narrow, width_mult=0.35, cut=-2).num_features == 112
    with pytest.raises(UserError, match="256 of another shape"):
        load_backbone("mobilenet_v2", weights=narrow)
    with pytest.raises(UserError, match="unexpected"):
        load_backbone("resnet18", weights=Path(DATA, "weights", "resnet20_cifar10_dataparallel.th"))
