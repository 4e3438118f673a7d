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
from ftlit.models.heads import LinearHead
from ftlit.probes.nearest import TrainVectors
from ftlit.recipes.run_report.run_pictures import MAX_IMAGES, ReportedNetwork, write_samples
from ftlit.recipes.run_report.run_report import write_tested
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
    network = ReportedNetwork(backbone, LinearHead(6, 3), TrainVectors.of(features, "low"))
    return OmegaConf.create({"paths": {"run": str(tmp_path)}, "seed": 0}), data, tested, network, tmp_path


def write(cfg, data, tested, network):
    write_tested(cfg, data, tested, {"features": torch.zeros(0, 6)}, network)


def test_the_nearest_training_image_of_a_copy_is_the_image_itself_with_its_label(parts):
    cfg, data, tested, network, folder = parts
    write(cfg, data, tested, network)
    errors, nearest = (read_pictures(folder, name) for name in ("mistakes", "nearest"))
    assert nearest.images.shape == (6, 8, 8, 3) and np.array_equal(nearest.images[::3], errors.images)
    assert list(nearest.captions[::3]) == ["nearest 1\na", "nearest 1\nb"]  # 9 is the most confident error, 4 the next one
    assert network.backbone.training  # as it was


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_nearest_images_are_found_by_a_backbone_of_another_number_format(parts, dtype):
    cfg, data, tested, network, folder = parts
    network.backbone.to(dtype)
    write(cfg, data, tested, network)
    assert np.array_equal(read_pictures(folder, "nearest").images[::3], read_pictures(folder, "mistakes").images)


def test_an_error_in_the_search_for_the_nearest_images_costs_these_only(parts, capsys):
    cfg, data, tested, network, folder = parts
    write(cfg, data, tested, ReportedNetwork(network.backbone, network.head, TrainVectors("removed", network.train.vectors)))
    assert read_pictures(folder, "mistakes") is not None and read_pictures(folder, "nearest") is None
    assert "note: the report has no nearest training images (" in capsys.readouterr().out


def test_without_features_of_the_training_images_there_are_none(parts):
    cfg, data, tested, network, folder = parts
    for other in (None, ReportedNetwork(network.backbone, network.head, TrainVectors("low", network.train.vectors[:11]))):
        write(cfg, data, tested, other)
        assert read_pictures(folder, "mistakes") is not None and read_pictures(folder, "nearest") is None


def test_each_error_has_a_map_of_what_spoke_for_its_class(parts):
    cfg, data, tested, network, folder = parts
    write(cfg, data, tested, network)
    maps = read_pictures(folder, "maps")
    assert maps.captions == ["red: c\nblue: b", "red: b\nblue: a"] and maps.images.shape == (2, 8, 8, 3)
    assert (maps.images.std(axis=3) > 0).any()  # coloured


def test_a_head_without_such_maps_has_none(parts):
    cfg, data, tested, network, folder = parts
    write(cfg, data, tested, ReportedNetwork(network.backbone, nn.Sequential(nn.Linear(6, 3)), network.train))
    assert read_pictures(folder, "maps") is None and read_pictures(folder, "nearest") is not None


def test_the_training_images_can_be_looked_at_before_training(parts):
    cfg, data, _, _, folder = parts
    write_samples(cfg, data)
    with Image.open(folder / "report" / "samples.jpg") as drawn:
        assert drawn.width > 6 * 150
    assert len(read_pictures(folder, "samples").images) == MAX_IMAGES


def test_the_first_possibly_mislabelled_images_are_kept_with_both_probabilities(parts):
    cfg, data, tested, _, folder = parts
    write_suspects(folder, [SuspectRow(str(place), "a", "c", 0.02, 0.97, place) for place in (*range(11), 7, 3, 2)])
    write(cfg, data, tested, None)
    shown = read_pictures(folder, "suspected")
    assert len(shown.images) == MAX_IMAGES and set(shown.captions) == {f"{place}\na (0.02)\nc? (0.97)" for place in (*range(11), 7)}
    assert np.array_equal(shown.images[11], np.asarray(picture(7))) and (folder / "report" / SUSPECTS_DIGEST).is_file()
