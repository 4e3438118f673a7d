"""The range of grey values that was measured on the training images is part of the record, and prediction reads in it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ftlit.data.images import to_rgb
from ftlit.inference.network import Network
from ftlit.inference.record import build_backbone, record_of
from ftlit.models.heads import LinearHead
from ftlit.zoo import load_backbone

HEAD = {"_target_": "ftlit.models.heads.LinearHead"}


def rebuilt(grey_range):
    backbone = load_backbone("glyph")
    backbone.input_spec = replace(backbone.input_spec, grey_range=grey_range)
    record = record_of(backbone, {}, HEAD, class_names=["a", "b"], multilabel=False, affine=False)
    return build_backbone({**record, "base": None}, trust=False), record


@pytest.mark.parametrize("grey_range", [None, (0.0, 4095.0)])
def test_the_range_is_in_the_record(grey_range):
    backbone, record = rebuilt(grey_range)
    assert backbone.input_spec.grey_range == grey_range
    del record["grey_range"]  # of an earlier program
    assert build_backbone(record, trust=False).input_spec.grey_range is None


def test_prediction_reads_files_and_images_in_the_range(tmp_path):
    values = np.tile(np.linspace(0, 4000, 32), (32, 1)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray((values * (255 / 4095)).round().astype(np.uint8)).save(tmp_path / "flat.png")
    network = Network(rebuilt((0, 4095))[0], LinearHead(128, 2), ["a", "b"], multilabel=False)
    deep, flat = (network.as_input(tmp_path / f"{name}.png") for name in ("deep", "flat"))
    with Image.open(tmp_path / "deep.png") as image:
        assert deep.equal(flat) and deep.equal(network.as_input(image))
        assert not deep.equal(network.as_input(to_rgb(image)))
