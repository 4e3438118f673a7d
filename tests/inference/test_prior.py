"""Predictions for other class frequencies: logits + log(new prior) - log(prior of training)."""

from math import log

import pytest
import torch
from torch import nn

from ftlit import UserError, load, load_backbone
from ftlit.inference.network import Network
from ftlit.inference.prior import NO_SETS, TrainedClasses, logit_adjustment, parse_prior, shares_of
from ftlit.inference.record import record_of
from ftlit.models.heads import LinearHead

NAMES = ["cat", "dog", "owl"]
COUNTS = [60, 30, 10]
TRAINED = TrainedClasses(COUNTS)


def network(trained=TRAINED, names=NAMES, multilabel=False):
    torch.manual_seed(0)
    backbone = load_backbone("mlp", weights=None, hidden=[8], input_spec={"size": 8})
    return Network(backbone.eval(), LinearHead(backbone.num_features, len(names)).eval(), names, multilabel, trained=trained)


def images():
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights", [(), (1.0, 4.0, 0.5)])
def test_the_prior_of_training_changes_no_bit(weights):
    trained = TrainedClasses(COUNTS, weights)
    plain, x = network(trained), images()
    own = dict(zip(NAMES, trained.prior.tolist(), strict=True))
    assert torch.equal(plain.with_prior(own).probabilities(x), plain.probabilities(x))
    same = plain.with_prior("train").probabilities(x)
    assert torch.equal(same, plain.probabilities(x)) == (not weights)


def test_balanced_class_weights_train_for_the_uniform_prior():
    counts = [7, 3, 13]
    trained = TrainedClasses(counts, [sum(counts) / (3 * number) for number in counts])
    assert trained.prior.tolist() == pytest.approx([1 / 3] * 3)
    plain, x = network(trained), images()
    assert torch.equal(plain.with_prior("balanced").probabilities(x), plain.probabilities(x))
    back = plain.with_prior("train").adjustment
    assert back.tolist() == pytest.approx([log(3 * number / sum(counts)) for number in counts])


def test_adjusted_posteriors_are_those_of_bayes_rule():
    plain, x = network(), images()
    new = torch.tensor([0.1, 0.2, 0.7])
    expected = plain.probabilities(x) * new / torch.tensor([0.6, 0.3, 0.1])
    expected = expected / expected.sum(dim=1, keepdim=True)
    found = plain.with_prior({"owl": 0.7, "cat": 0.1, "dog": 0.2}).probabilities(x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(plain.logits(x), plain.with_prior("balanced").logits(x))  # the adjustment is one of probabilities


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_posterior_of_a_class_moves_with_its_share(name):
    plain, x, k = network(), images(), NAMES.index(name)
    means = []
    for share in (0.01, float(TRAINED.prior[k]), 0.9):
        others = (1 - share) / (1 - float(TRAINED.prior[k]))
        prior = {other: share if other == name else others * float(p) for other, p in zip(NAMES, TRAINED.prior, strict=True)}
        means.append(float(plain.with_prior(prior).probabilities(x)[:, k].mean()))
    assert means[0] < means[1] < means[2] and means[1] == pytest.approx(float(plain.probabilities(x)[:, k].mean()))


def test_the_threshold_of_two_classes_moves_by_the_log_odds():
    """Trained on 90 : 10 and used at 50 : 50, a class is predicted from a probability of 0.1 on: 0.1 / 0.1 = 0.9 / 0.9."""
    two = network(TrainedClasses([90, 10]), ["a", "b"])
    adjusted = two.with_prior("balanced")
    for probability, label in ((0.09, "a"), (0.11, "b")):
        logits = torch.tensor([[log(1 - probability), log(probability)]])
        assert two._normalized(logits).argmax() == 0
        found = adjusted._normalized(logits)
        assert adjusted.predictions(found)[0].label == label
        odds = probability / (1 - probability) * 9
        assert float(found[0, 1]) == pytest.approx(odds / (1 + odds))


def test_a_class_of_share_0_is_never_predicted():
    found = network().with_prior({"cat": 0.0, "dog": 0.5, "owl": 0.5}).probabilities(images())
    assert not found[:, 0].any() and found.isfinite().all()


def test_a_map_has_the_prior_of_its_network():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    adjusted = network().with_prior("balanced")
    found = adjusted._normalized(logits)
    torch.testing.assert_close(found[1, :, 2, 3], adjusted._normalized(logits[1:, :, 2, 3])[0])


@pytest.mark.parametrize(
    ("text", "prior"),
    [
        ("balanced", "balanced"),
        ("train", "train"),
        ("cat=0.9,dog=.1", {"cat": 0.9, "dog": 0.1}),
        ("tench, Tinca tinca=1,a=b=2e-1", {"tench, Tinca tinca": 1.0, "a=b": 0.2}),
    ],
)
def test_the_forms_of_a_prior(text, prior):
    assert parse_prior(text) == prior


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("balance", "prior 'balance' is not valid: give balanced, train, or a share for each class, such as cat=0.9,dog=0.1"),
        ("cat=a,dog=1", "prior has cat=a, which is not a number"),
        ("cat=1,cat=1", "prior has class 'cat' twice: give"),
        ("cat=1,dgo=1,owl=1", "no class 'dgo': did you mean 'dog'? There are: cat, dog, owl"),
        ("cat=1,dog=1", "prior has no share for owl: give a share for each class, 0 for a class that does not occur"),
        ("cat=1,dog=-1,owl=1", "prior has dog=-1.0: give shares from 0 to 1"),
        ("cat=nan,dog=1,owl=1", "prior has cat=nan: give shares from 0 to 1"),
        ("cat=0,dog=0,owl=0", "prior has only shares of 0: give"),
    ],
)
def test_a_wrong_prior_is_an_error(text, message):
    with pytest.raises(UserError) as caught:
        shares_of(parse_prior(text), NAMES, TRAINED)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_shares_are_divided_by_their_sum():
    assert shares_of({"cat": 6, "dog": 3, "owl": 1}, NAMES, TRAINED).tolist() == pytest.approx([0.6, 0.3, 0.1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multilabel": True}, "a prior needs one label per image"),
        ({"trained": None}, "this checkpoint does not record the class frequencies"),
        ({"trained": TrainedClasses([5, 0, 1])}, "a prior needs training images of each class, but dog had none"),
    ],
)
def test_networks_without_a_prior_of_training_are_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        network(**changes).with_prior("balanced")


def test_prediction_sets_are_not_for_another_prior():
    adjusted = network().with_prior("balanced")
    with pytest.raises(UserError) as caught:
        adjusted.prediction_set(adjusted.predictions(adjusted.probabilities(images()))[0])
    assert str(caught.value) == NO_SETS


def test_the_checkpoint_records_the_classes_of_training(tmp_path):
    own = network()
    head = {"_target_": "ftlit.models.heads.LinearHead"}
    facts = {"class_names": NAMES, "multilabel": False, "affine": False}
    state = nn.ModuleDict({"backbone": own.backbone, "head": own.head}).state_dict()
    for values, trained in (
        ({"train_counts": COUNTS, "class_weights": [1.0, 2.0, 3.0]}, TrainedClasses(COUNTS, [1.0, 2.0, 3.0])),
        ({"train_counts": COUNTS}, TRAINED),
        ({}, None),
    ):
        record = record_of(own.backbone, {}, head, **facts, **values)
        torch.save({"state_dict": state, "ftlit": record}, tmp_path / "best.ckpt")
        assert load(tmp_path / "best.ckpt").trained == trained
    for wrong in ([1, 2], [1, 2, -3], [1, 2, float("inf")], "abc", [1, 2, "3"]):
        torch.save({"state_dict": state, "ftlit": {**record, "train_counts": wrong}}, tmp_path / "best.ckpt")
        with pytest.raises(UserError, match="train_counts"):
            load(tmp_path / "best.ckpt")
    assert logit_adjustment("train", NAMES, TRAINED, multilabel=False) is None
