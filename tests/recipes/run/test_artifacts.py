"""The report of a run: images of possibly mislabelled examples, and the training images nearest to each error."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from ftlit import Backbone, ImageData, InputSpec
from ftlit.data.dataset import Collection, Examples
from ftlit.features.extract import extract_features
from ftlit.probes.nearest import TrainVectors
from ftlit.recipes.run import artifacts
from ftlit.report.contents import Predictions, SuspectRow
from ftlit.report.run_files import SUSPECTS_DIGEST, read_pictures, write_suspects

LABELS = [(place % 3,) for place in range(12)]


def picture(place: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(place).integers(0, 255, (8, 8, 3), np.uint8))


@pytest.fixture
def parts(tmp_path):
    """Config, data of arrays and features of a run whose test images are training images 4 and 9, classified wrongly."""
    splits = {"train": Examples(range(12), LABELS, picture), "val": Examples(range(3), LABELS[:3], picture)}
    splits["test"] = Examples([4, 9], [(0,), (1,)], picture)
    data = ImageData(Collection(splits, list("abc"), multilabel=False), InputSpec(size=8), batch_size=8, num_workers=0, augment="none")
    torch.manual_seed(0)
    backbone = Backbone({"low": nn.Conv2d(3, 8, 3), "top": nn.Sequential(nn.Conv2d(8, 6, 3), nn.Tanh())}, InputSpec(size=8)).train()
    images = torch.stack([data.transforms["val"](picture(place)) for place in range(12)])
    features = extract_features(backbone, [images], "low", cache=tmp_path / "store")
    tested = Predictions(["0", "1"], [(0,), (1,)], [(1,), (2,)], np.array([0.7, 0.9]))
    (tmp_path / "report").mkdir()
    similar = artifacts.Similar(backbone, TrainVectors.of(features, "low"))
    return OmegaConf.create({"paths": {"run": str(tmp_path)}, "seed": 0}), data, tested, similar, tmp_path


def write(cfg, data, tested, similar):
    artifacts._write_tested(cfg, data, tested, {"features": torch.zeros(0, 6)}, similar)


def test_the_nearest_training_image_of_a_copy_is_the_image_itself_with_its_label(parts):
    cfg, data, tested, similar, folder = parts
    write(cfg, data, tested, similar)
    errors, nearest = (read_pictures(folder, name) for name in ("mistakes", "nearest"))
    assert nearest.images.shape == (6, 8, 8, 3) and np.array_equal(nearest.images[::3], errors.images)
    assert list(nearest.captions[::3]) == ["nearest 1\na", "nearest 1\nb"]  # 9 is the most confident error, 4 the next one
    assert similar.backbone.training  # as it was


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_nearest_images_are_found_by_a_backbone_of_another_number_format(parts, dtype):
    cfg, data, tested, similar, folder = parts
    similar.backbone.to(dtype)
    write(cfg, data, tested, similar)
    assert np.array_equal(read_pictures(folder, "nearest").images[::3], read_pictures(folder, "mistakes").images)


def test_an_error_in_the_search_for_the_nearest_images_costs_these_only(parts, capsys):
    cfg, data, tested, similar, folder = parts
    write(cfg, data, tested, artifacts.Similar(similar.backbone, TrainVectors("removed", similar.train.vectors)))
    assert read_pictures(folder, "mistakes") is not None and read_pictures(folder, "nearest") is None
    assert "note: no nearest training images in the report: " in capsys.readouterr().out


def test_without_features_of_the_training_images_there_are_none(parts):
    cfg, data, tested, similar, folder = parts
    for other in (None, artifacts.Similar(similar.backbone, TrainVectors("low", similar.train.vectors[:11]))):
        write(cfg, data, tested, other)
        assert read_pictures(folder, "mistakes") is not None and read_pictures(folder, "nearest") is None


def test_the_first_possibly_mislabelled_images_are_kept_with_both_probabilities(parts):
    cfg, data, tested, _, folder = parts
    write_suspects(folder, [SuspectRow(str(place), "a", "c", 0.02, 0.97, place) for place in (*range(11), 7, 3, 2)])
    write(cfg, data, tested, None)
    shown = read_pictures(folder, "suspected")
    assert len(shown.images) == artifacts.MAX_IMAGES and set(shown.captions) == {"a (0.02)\nc? (0.97)"}
    assert np.array_equal(shown.images[11], np.asarray(picture(7))) and (folder / "report" / SUSPECTS_DIGEST).is_file()
