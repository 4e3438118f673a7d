"""Training examples that are possibly mislabelled: planted ones come first, by probabilities without the example itself."""

import pytest
import torch

from ftlit.probes.fitted_head.head_probe import HeldOutLogits
from ftlit.probes.fitted_head.suspects import MIN_ODDS, suspects_of
from ftlit.probes.linear_probe import fit_probe


def held_out(probabilities, labels, places=None):
    numbers = torch.arange(len(labels)) if places is None else torch.tensor(places)
    return HeldOutLogits(torch.tensor(labels), numbers, torch.tensor(probabilities).log())


def test_examples_are_listed_by_the_odds_against_their_label_the_least_probable_first():
    rows = [[0.08, 0.9, 0.02], [0.5, 0.49, 0.01], [0.02, 0.03, 0.95], [0.95, 0.03, 0.02], [0.11, 0.87, 0.02]]
    found = suspects_of(held_out(rows, [0, 1, 1, 0, 0], places=[7, 3, 9, 1, 2]))
    assert [(own.place, own.label, own.suggested) for own in found] == [(9, 1, 2), (7, 0, 1)]
    assert found[0].probability == pytest.approx(0.03) and found[0].suggested_probability == pytest.approx(0.95)
    assert 0.87 < MIN_ODDS * 0.11 and 0.9 > MIN_ODDS * 0.08


def test_equally_probable_ones_are_listed_by_their_place():
    found = suspects_of(held_out([[0.01, 0.99]] * 3, [0, 0, 0], places=[5, 2, 4]))
    assert [own.place for own in found] == [2, 4, 5]


def test_only_planted_labels_are_listed_and_most_of_them():
    draw = torch.Generator().manual_seed(0)
    true = torch.arange(200) % 4
    vectors = 3 * torch.nn.functional.one_hot(true, 8) + torch.randn(200, 8, generator=draw) * 0.6
    given, wrong = true.clone(), torch.randperm(200, generator=draw)[:10]
    given[wrong] = (true[wrong] + 1) % 4
    probe = fit_probe(vectors, given)
    found = suspects_of(HeldOutLogits(probe.held_out.labels, probe.held_out.places, probe.held_out.logits[0]))
    assert len(found) >= 5 and {own.place for own in found} <= set(wrong.tolist())
    assert all(own.suggested == true[own.place] for own in found)


def test_the_weights_of_the_classes_do_not_make_correct_labels_of_frequent_classes_suspects():
    rows = torch.tensor([[0.7, 0.3], [0.55, 0.45], [0.95, 0.05]])
    weighted = HeldOutLogits(torch.tensor([0, 0, 1]), torch.arange(3), (rows * torch.tensor([0.05, 5.0])).log())
    assert [own.place for own in suspects_of(weighted)] == [1, 0]
    found = suspects_of(weighted, [0.05, 5.0])
    assert [(own.place, own.suggested) for own in found] == [(2, 0)] and found[0].probability == pytest.approx(0.05)


def test_a_probe_with_balanced_weights_lists_no_more_correct_labels_than_one_without():
    draw = torch.Generator().manual_seed(0)
    labels = (torch.arange(1000) % 50 == 0).long()
    vectors = torch.randn(1000, 4, generator=draw) + 2 * labels[:, None] * torch.tensor([1.0, 0, 0, 0])

    def listed(weights, *, undone):
        probe = fit_probe(vectors, labels, class_weights=weights)
        held = HeldOutLogits(probe.held_out.labels, probe.held_out.places, probe.held_out.logits[0])
        return sum(own.label == 0 for own in suspects_of(held, probe.class_weights if undone else None))

    assert listed("balanced", undone=False) > 20 > 3 >= listed("balanced", undone=True) >= listed(None, undone=True)
