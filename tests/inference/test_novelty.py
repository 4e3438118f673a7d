"""Inputs unlike those of training: what is flagged, how often known ones are, and what `ftlit predict` prints."""

import csv
import io
import json

import pytest
import torch
from test_predict import command, images, save_run  # noqa: F401  (a fixture)

from ftlit import UserError, load, load_backbone
from ftlit.inference.novelty import DIRECTIONS, KEY, MAX_IMAGES, FeatureSubspace, _threshold, feature_subspace, some_places


def known(number: int, seed: int) -> torch.Tensor:
    """Features (number, 60) near a subspace of 8 directions, of any length."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(8, 60, generator=torch.Generator().manual_seed(0))
    scale = 10 ** torch.rand(number, 1, generator=draw)
    return scale * (torch.randn(number, 8, generator=draw) @ directions + 0.3 * torch.randn(number, 60, generator=draw))


def test_about_one_in_a_hundred_known_inputs_is_flagged_and_others_are():
    subspace = feature_subspace(known(400, 1))
    flagged = subspace.distances(known(20_000, 2)) > subspace.threshold
    assert 0.002 < flagged.double().mean() < 0.03
    others = torch.randn(1000, 60, generator=torch.Generator().manual_seed(3))
    assert (subspace.distances(others) > subspace.threshold).double().mean() > 0.99
    assert subspace.distances(torch.zeros(1, 60)).item() == 1 and len(subspace.basis) == DIRECTIONS


@pytest.mark.parametrize("number", [10, 20])
def test_also_with_few_images_about_one_in_a_hundred_known_inputs_is_flagged(number):
    subspaces = [feature_subspace(known(number, seed)) for seed in range(60)]
    tested = known(500, 1000)
    flagged = [(own.distances(tested) > own.threshold).double().mean().item() for own in subspaces]
    # 0.0009 with 10, where the subspace of all is nearer to new ones than that of four fifths; above the largest distance 0.046 and 0.030
    assert 0.0005 < sum(flagged) / len(flagged) < 0.02
    assert sum(share > 0.05 for share in flagged) <= 6


@pytest.mark.parametrize("number", [10, 20, 100])
def test_a_new_distance_is_above_the_threshold_with_a_probability_of_one_percent(number):
    drawn = torch.empty(6000, number).exponential_(generator=torch.Generator().manual_seed(0))
    above = torch.tensor([_threshold(own) for own in drawn]).neg().exp()  # the probability, of exponential distances
    assert above.mean().item() == pytest.approx(0.01, abs=0.0004)  # with k in place of k + 1: 0.0133, 0.0119, 0.0105


def test_duplicates_among_the_training_images_do_not_raise_the_threshold():
    features = known(40, 5)
    doubled = torch.cat([features, *[features[:1]] * 20])
    assert feature_subspace(doubled).threshold < 1.2 * feature_subspace(features).threshold


def test_the_distance_is_the_squared_sine_of_the_angle_and_does_not_depend_on_length():
    subspace = FeatureSubspace(torch.eye(3)[:2], 0.5)
    features = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(subspace.distances(features), torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(subspace.distances(7 * features), subspace.distances(features))
    torch.testing.assert_close(subspace.relative_distances(features), torch.tensor([0.0, 2.0, 1.0]))
    assert FeatureSubspace(torch.eye(3), 0.0).relative_distances(features).max() < 1


def test_few_images_or_infinite_features_have_no_subspace():
    assert feature_subspace(known(9, 0)) is None and feature_subspace(known(10, 0)) is not None
    assert feature_subspace(torch.full((20, 4), torch.inf)) is None
    (places,) = some_places(10_000)
    assert len(set(places)) == MAX_IMAGES and places[0] == 0 and places[-1] == 9999 and some_places(3) == [[0, 1, 2]]


def test_the_images_whose_features_are_kept_are_shared_by_the_sizes_of_the_sets():
    large, small = some_places(9_000, 1_000)
    assert (len(set(large)), len(set(small))) == (450, 50) and large[0] == 0 and small[-1] == 999
    assert some_places(3, 2) == [[0, 1, 2], [0, 1]] and some_places(10_000, 1)[1] == [0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "glyph", load_backbone("glyph", weights=None))


@pytest.mark.parametrize("threshold", [0.001, 1.0])
def test_predict_flags_inputs_above_the_threshold(run, images, tmp_path, monkeypatch, capsys, threshold):  # noqa: F811
    content = torch.load(run / "checkpoints" / "best.ckpt")
    width = load(run).backbone.num_features
    torch.save({**content, KEY: FeatureSubspace(torch.eye(width)[:4], threshold).record()}, tmp_path / "a.ckpt")
    code, out, err = command(monkeypatch, capsys, "predict", "a.ckpt", "set/list.csv")
    rows, flagged = list(csv.DictReader(io.StringIO(out))), threshold < 1
    assert code == 1 and list(rows[0])[-3:] == ["unlike", "distance", "error"]
    assert [row["unlike"] for row in rows] == [*["yes" if flagged else "no"] * 2, ""]
    assert err.startswith("ftlit: 2 of 3 images are unlike the training images: ") == flagged
    _, out, _ = command(monkeypatch, capsys, "predict", "a.ckpt", "set/list.csv", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert [row.get("unlike") for row in records] == [flagged, flagged, None]
    assert [row["distance"] for row in records[:2]] == pytest.approx([float(row["distance"]) for row in rows[:2]], abs=0.01)
    assert rows[2]["distance"] == "" and "distance" not in records[2]
    network, other = load("a.ckpt"), load(run)("set/own/a.png")
    assert network("set/own/a.png").unlike is flagged and other.unlike is None and other.distance is None
    _, features = network._outputs(network.as_input("set/own/a.png")[None])
    (distance,) = network.subspace.distances(features).tolist()
    assert network("set/own/a.png").distance == pytest.approx(distance / threshold)


def test_a_damaged_subspace_is_a_one_line_error(run, tmp_path):
    content = torch.load(run / "checkpoints" / "best.ckpt")
    for damage in ({"basis": None}, {"basis": torch.ones(3)}, {"basis": torch.full((2, 3), torch.nan)}, {"threshold": None}):
        torch.save({**content, KEY: {"format": 1, "basis": torch.eye(3), "threshold": 0.5, **damage}}, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match="its subspace of features is not valid"):
            load(tmp_path / "a.ckpt")
