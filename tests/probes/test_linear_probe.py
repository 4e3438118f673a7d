"""Linear probes: standardised features, the choice of the L2 penalty, the head of a probe, errors for bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ftlit import UserError, extract_features, fit_probe, load_backbone
from ftlit.probes.cross_validation import FOLDS, MIN_DEVIATION, LabelledVectors, folds_of
from ftlit.probes.l2_search import held_out_results
from ftlit.probes.probe_kinds import PROBE_KINDS, ProbeKind
from ftlit.probes.solver import RegularizationPath

DIGITS = load_digits()
FEATURES, LABELS = torch.from_numpy(DIGITS.data), torch.from_numpy(DIGITS.target)


@pytest.mark.parametrize("kind", PROBE_KINDS)
@pytest.mark.parametrize("classes", [2, 10])
def test_the_head_gives_the_logits_of_the_probe_on_raw_features(kind, classes):
    chosen = LABELS < classes
    features, labels = FEATURES[chosen][:200], LABELS[chosen][:200]
    probe = fit_probe(features, labels, kind=kind, l2=1e-2)
    assert probe.converged and probe.weight.shape == (classes, 64)
    head = probe.as_head()
    assert torch.allclose(head(features.float()).double(), probe.logits(features), atol=1e-4)
    assert head(features.float()).argmax(dim=1).equal(probe.predict(features)) and probe.accuracy(features, labels) > 0.98
    constant = features.std(dim=0) == 0
    assert constant.any() and float(probe.weight[:, constant].abs().max()) < 1e-9


@pytest.mark.parametrize("kind", PROBE_KINDS)
def test_an_almost_constant_feature_has_a_small_weight(kind):
    almost_constant = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=FEATURES.dtype) * 1e-30
    probe = fit_probe(torch.cat([FEATURES[:200], almost_constant], dim=1), LABELS[:200], kind=kind, l2=1e-2)
    alone = fit_probe(FEATURES[:200], LABELS[:200], kind=kind, l2=1e-2)
    assert torch.allclose(probe.weight[:, :-2], alone.weight, atol=1e-3) and float(probe.weight[:, -2:].abs().max()) < 1e-3


@pytest.mark.parametrize("classes", [2, 10])
def test_probabilities_equal_those_of_scikit_learn_on_standardised_features(classes):
    chosen = LABELS < classes
    features, labels = FEATURES[chosen][:300], LABELS[chosen][:300]
    deviation = features.std(dim=0)
    kept = features[:, deviation > MIN_DEVIATION * deviation[deviation > 0].median()]
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (len(labels) * 1e-2), tol=1e-10, max_iter=10_000)).fit(kept, labels)
    ours = fit_probe(features, labels, l2=1e-2)
    assert np.abs(theirs.predict_proba(kept) - ours.logits(features).softmax(dim=1).numpy()).max() < 1e-3
    assert kept.shape[1] < 64 and int((ours.weight != 0).any(dim=0).sum()) == kept.shape[1]


def hinge(probe, features, labels):
    signs = 2 * torch.nn.functional.one_hot(labels, 10) - 1
    return float((1 - signs * probe.logits(features)).clamp(min=0).square().sum(dim=1).mean())


def square(probe, features, labels):
    signs = 2 * torch.nn.functional.one_hot(labels, 10) - 1
    return float((probe.logits(features) - signs).square().sum(dim=1).mean() / 2)


def entropy(probe, features, labels):
    return log_loss(labels, probe.logits(features).softmax(dim=1), labels=range(10))


@pytest.mark.parametrize(("kind", "loss"), [("softmax", entropy), ("svm", hinge), ("ridge", square)])
def test_the_l2_penalty_with_the_lowest_validation_loss_is_chosen_and_the_probe_refitted_on_all(kind, loss):
    train, valid = (FEATURES[:100], LABELS[:100]), (FEATURES[100:200], LABELS[100:200])
    l2_penalties = [10.0, 1e-1, 1e-2, 1e-3, 1e-5]
    probe = fit_probe(*train, l2=l2_penalties, valid=valid, kind=kind)
    alone = {l2: fit_probe(*train, l2=l2, kind=kind) for l2 in l2_penalties}
    assert probe.scores == pytest.approx({l2: alone[l2].accuracy(*valid) for l2 in l2_penalties})
    assert probe.losses == pytest.approx({l2: loss(alone[l2], *valid) for l2 in l2_penalties}, rel=3e-4)
    assert probe.l2 == min(l2_penalties, key=probe.losses.get) and probe.l2 not in (l2_penalties[0], l2_penalties[-1])
    both = fit_probe(torch.cat([train[0], valid[0]]), torch.cat([train[1], valid[1]]), l2=probe.l2, kind=kind)
    assert torch.allclose(probe.weight, both.weight, atol=1e-5)


def test_losses_of_two_classes_equal_those_of_the_head():
    chosen = LABELS < 2
    features, labels = FEATURES[chosen], LABELS[chosen]
    for kind in PROBE_KINDS:
        probe = fit_probe(features[:80], labels[:80], l2=1e-2, valid=(features[80:], labels[80:]), kind=kind)
        alone = fit_probe(features[:80], labels[:80], l2=1e-2, kind=kind)
        logits, (found,) = alone.logits(features[80:]), probe.losses.values()
        margin = (2 * labels[80:] - 1) * (logits[:, 1] - logits[:, 0])
        expected = {
            "softmax": torch.nn.functional.cross_entropy(logits, labels[80:]),
            "svm": (1 - margin).clamp(min=0).square().mean(),
            "ridge": (1 - margin).square().mean() / 2,
        }
        assert found == pytest.approx(float(expected[kind]), rel=1e-6)


def test_without_validation_data_cross_validation_with_seeded_folds_chooses():
    first, again, other = (fit_probe(FEATURES[:150], LABELS[:150], l2=[1.0, 1e-2, 1e-4], seed=seed) for seed in (0, 0, 1))
    assert first.scores == again.scores != other.scores and first.l2 in first.scores
    fold = folds_of(LABELS[:150], FOLDS, 0)
    right = 0
    for i in range(FOLDS):
        kept = fold != i
        probe = fit_probe(FEATURES[:150][kept], LABELS[:150][kept], l2=1e-2)
        right += int((probe.predict(FEATURES[:150][~kept]) == LABELS[:150][~kept]).sum())
    assert first.scores[1e-2] == pytest.approx(right / 150)


@pytest.mark.parametrize("kind", ["softmax", "svm"])
def test_the_coarser_tolerance_of_cross_validation_chooses_as_the_tolerance_of_a_result(kind):
    examples, l2_penalties = LabelledVectors(FEATURES[:150], LABELS[:150]), [1e-1, 1e-2, 1e-3, 1e-4]
    coarse, fine = (
        held_out_results(examples, None, 10, l2_penalties, method, seed=0)[1]
        for method in (PROBE_KINDS[kind], replace(PROBE_KINDS[kind], coarse_fit=None))
    )
    assert not torch.equal(coarse.losses, fine.losses)
    means = coarse.losses.mean(dim=1), fine.losses.mean(dim=1)
    assert torch.allclose(*means, rtol=2e-3) and means[0].argmin() == means[1].argmin()


@pytest.mark.parametrize("counts", [[20, 20], [7, 3, 1], [5, 1, 2, 12], [1, 1, 2]])
def test_each_class_is_spread_over_the_folds_and_none_loses_all_its_images(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    fold = folds_of(labels, FOLDS, 3)
    for label, count in enumerate(counts):
        held = torch.bincount(fold[labels == label] + 1, minlength=FOLDS + 1)
        if count == 1:
            assert held.tolist() == [1] + [0] * FOLDS
        else:
            assert held[0] == 0 and held[1:].max() - held[1:].min() <= 1 and held[1:].max() < count
    sizes = torch.bincount(fold[fold >= 0], minlength=FOLDS)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole_and_no_class_is_lost(seed):
    draw = torch.Generator().manual_seed(seed)
    number = torch.randint(12, (60,), generator=draw)
    labels = torch.where(number < 6, number % 3, torch.randint(3, (60,), generator=draw))
    labels[number == 7] = 3  # a class in one group alone
    groups = [None if own == 11 else str(int(own)) for own in number]
    fold = folds_of(labels, FOLDS, seed, groups)
    assert all(len({int(fold[i]) for i in range(60) if groups[i] == name}) == 1 for name in set(groups) - {None})
    assert (fold[number == 7] == -1).all() and (fold[number != 7] >= 0).all()
    assert all(set(labels[fold != i].tolist()) == {0, 1, 2, 3} for i in range(FOLDS))
    sizes = torch.bincount(fold[fold >= 0], minlength=FOLDS)
    assert sizes.min() >= 5


def test_where_each_class_is_one_group_and_without_groups_single_images_are_held_out():
    whole = folds_of(LABELS[:150], FOLDS, 0)
    for groups in ([str(int(label)) for label in LABELS[:150]], [None] * 150):
        assert torch.equal(folds_of(LABELS[:150], FOLDS, 0, groups), whole)


def test_a_probe_can_be_fitted_on_stored_features_at_any_cut(tmp_path):
    backbone = load_backbone("glyph")
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 4
    features = extract_features(backbone, [(images, labels)], ["layer2", "layer4"], cache=tmp_path)
    for cut in ("layer2", "layer4"):
        probe = fit_probe(features, cut=cut, l2=1e-3)
        assert probe.cut == cut and probe.accuracy(features) == 1.0
        assert torch.allclose(probe.weight, fit_probe(features[cut].read(range(40)), labels, l2=1e-3).weight)
    with pytest.raises(UserError, match="no cut 'layer5': did you mean"):
        fit_probe(features, cut="layer5")
    with pytest.raises(UserError, match=r"features are from several cuts: give cut=\.\.\., one or more of layer2, layer4"):
        fit_probe(features)
    with pytest.raises(UserError, match="this probe was fitted on features of length 128, but these have length 64"):
        fit_probe(features, cut="layer4", l2=1e-3).accuracy(features["layer2"].read(range(40)), labels)


def test_equal_features_are_a_warning_and_give_the_share_of_each_class():
    with pytest.warns(UserWarning, match="all feature vectors are equal"):
        probe = fit_probe(torch.ones(12, 2), torch.tensor([0, 0, 1] * 4), valid=(torch.ones(2, 2), torch.tensor([0, 1])))
    assert not probe.weight.any()


BAD = {
    "all targets are 0": (FEATURES[:5], torch.zeros(5, dtype=torch.long), {}),
    "no feature vector has the class number 3, but there are 10 classes": (FEATURES[:3], LABELS[:3], {"num_classes": 10}),
    "no feature vector has the class number 1, but there are 3 classes": (FEATURES[:4], torch.tensor([0, 2, 0, 2]), {}),
    "NaN or infinite values, first in row 1": (torch.tensor([[0.0], [float("nan")], [1.0]]), torch.tensor([0, 1, 1]), {}),
    "all features have NaN or infinite values: check the weights": (torch.full((3, 1), float("inf")), torch.tensor([0, 1, 1]), {}),
    "the targets go from 0 to 9: give class numbers from 0 to 4": (FEATURES, LABELS, {"num_classes": 5}),
    "the targets go from -1 to 8: give class numbers of 0 or more": (FEATURES[:10], LABELS[:10] - 1, {}),
    r"targets are torch.float32: give an integer tensor of shape \(4,\)": (FEATURES[:4], LABELS[:4].float(), {}),
    "targets are a list: give an integer tensor": (FEATURES[:2], ["a", "b"], {}),
    "pooling=maxx is not valid: did you mean 'max'": (FEATURES, LABELS, {"pooling": "maxx"}),
    r"float vectors \(N, C\), not features of shape \(4, 3, 2, 2\)": (torch.zeros(4, 3, 2, 2), LABELS[:4], {}),
    r"vectors \(N, C\), not ndarray: give torch.as_tensor\(features\)": (FEATURES[:4].numpy(), LABELS[:4], {}),
    r"float vectors, not torch.int64: give features.float\(\)": (torch.zeros(4, 2, dtype=torch.int64), LABELS[:4], {}),
    r"targets have the shape \(3,\), but there are 4 feature vectors: give the shape \(4,\)": (FEATURES[:4], LABELS[:3], {}),
    "targets are missing: give an integer tensor": (FEATURES[:4], None, {}),
    "no kind of probe 'svn': did you mean 'svm'": (FEATURES, LABELS, {"kind": "svn"}),
    "l2=0 is not valid: give L2 penalties above 0": (FEATURES, LABELS, {"l2": 0}),
    "there are no features": (FEATURES[:0], LABELS[:0], {}),
    "every class has only one example": (FEATURES[:3], LABELS[:3], {}),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_for_invalid_input_are_one_line(message):
    features, labels, options = BAD[message]
    with pytest.raises(UserError, match=message) as raised:
        fit_probe(features, labels, **options)
    assert "\n" not in str(raised.value)


def test_the_error_for_features_larger_than_the_memory_gives_both_sizes(tmp_path, monkeypatch):
    features = extract_features(load_backbone("glyph"), [(torch.rand(9, 3, 32, 32), torch.arange(9) % 3)], cache=tmp_path)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(UserError, match=r"on 9 features needs 37\.7 kB of memory, but this machine has 10 kB: use fewer images"):
        fit_probe(features)


@pytest.mark.parametrize("kind", PROBE_KINDS)
def test_the_summary_gives_the_argument_of_scikit_learn(kind):
    probe = fit_probe(FEATURES[:100], LABELS[:100], kind=kind, l2=1e-2)
    argument = "alpha 1" if kind == "ridge" else "C 1"  # 100 samples * 0.01
    assert (
        probe.samples == 100 and probe.summary == f"linear probe ({kind}, L2 1.0e-02, scikit-learn's {argument}) on average-pooled features"
    )


@pytest.mark.parametrize(
    ("tried", "chosen", "end"),
    [
        ([1.0, 1e-2, 1e-3], 1.0, "this L2 is the largest tried, a larger one may be better"),
        ([1.0, 1e-2, 1e-3], 1e-3, "this L2 is the smallest tried, a smaller one may be better"),
        ([1.0, 1e-2, 1e-5], 1e-5, ""),  # weaker ones change nothing
        ([1.0, 1e-2, 1e-3], 1e-2, ""),
        ([1e-3], 1e-3, ""),
    ],
)
def test_the_summary_says_at_an_end_of_the_penalties_what_may_be_better_where_it_matters(tried, chosen, end):
    probe = replace(fit_probe(FEATURES[:100], LABELS[:100], l2=1e-2), l2=chosen, losses=dict.fromkeys(tried, 0.5))
    before, ending, _ = probe.summary.partition(f"{'; ' if end else ''}{end}) on ")
    assert before.startswith(f"linear probe (softmax, L2 {chosen:.1e}, scikit-learn's C ") and ";" not in before and ending


def test_a_custom_kind_is_fitted_chosen_and_named_in_the_summary(monkeypatch):
    def nearest_mean(features, labels, classes, l2_penalties):
        means = torch.stack([features[labels == label].mean(dim=0) for label in range(classes)])
        weight = torch.stack([means / (1 + l2) for l2 in l2_penalties])
        numbers = torch.zeros(len(l2_penalties), dtype=torch.float64)
        return RegularizationPath(weight, -(weight * means).sum(dim=2) / 2, numbers, numbers, numbers == 0)

    def losses(outputs, labels):
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    kind = ProbeKind(nearest_mean, losses)
    monkeypatch.setattr(PROBE_KINDS, "_parts", {**PROBE_KINDS})
    PROBE_KINDS.register("nearest_mean")(kind)
    probe = fit_probe(FEATURES[:300], LABELS[:300], kind="nearest_mean", l2=[1.0, 1e-1, 1e-2])
    assert probe.l2 == min(probe.losses, key=probe.losses.get) and probe.score > 0.9
    assert probe.summary.startswith("linear probe (nearest_mean, L2 1.0e+00; this L2 is the largest tried, a larger one may be better) on ")
    with pytest.raises(UserError, match="no kind of probe 'nearest_men': did you mean 'nearest_mean'"):
        fit_probe(FEATURES[:300], LABELS[:300], kind="nearest_men")
