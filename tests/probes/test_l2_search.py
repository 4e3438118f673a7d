"""The search for an L2 penalty ends at the penalty that trying all of them chooses, with fewer fits."""

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits

from ftlit.probes import l2_search
from ftlit.probes.cross_validation import HeldOut, LabelledVectors
from ftlit.probes.l2_search import held_out_results, search_l2
from ftlit.probes.linear_probe import L2_PENALTIES, fit_probe
from ftlit.probes.probe_kinds import PROBE_KINDS

PENALTIES = list(L2_PENALTIES)
DIGITS = load_digits()
VECTORS, LABELS = torch.from_numpy(DIGITS.data).float(), torch.from_numpy(DIGITS.target).long()


@pytest.mark.parametrize("penalties", [PENALTIES, PENALTIES[:2], PENALTIES[:6], [1.0]], ids=len)
@pytest.mark.parametrize("place", [0, 1, 7, 12, 23, 24])
def test_the_lowest_of_losses_that_fall_and_rise_is_found(penalties, place):
    tried = []

    def held_out(some):
        assert not set(some) & set(tried) and list(some) == sorted(some, reverse=True)
        tried.extend(some)
        losses = torch.tensor([[abs(PENALTIES.index(l2) - place) ** 1.5] if l2 in PENALTIES else [0.0] for l2 in some]).double()
        return HeldOut(torch.tensor([0]), torch.tensor([0]), losses < 1, losses, None)

    order, found = search_l2(held_out, penalties)
    assert order == sorted(tried, reverse=True) and found.losses.shape == found.correct.shape == (len(order), 1)
    assert order[int(found.losses[:, 0].argmin())] == penalties[min(place, len(penalties) - 1)]
    assert len(order) <= 14 and all(l2 >= PENALTIES[min(24, max(12, place + 8))] for l2 in order)  # weak ones take longest


@pytest.mark.parametrize("labels", [LABELS, LABELS % 2], ids=["softmax", "logistic"])
@pytest.mark.parametrize("kind", ["softmax", "svm"])
@pytest.mark.parametrize("count", [60, 300])
def test_the_path_ends_behind_the_best_penalty_with_the_results_of_all_penalties(monkeypatch, kind, count, labels):
    few = slice(0, count)
    ended = fit_probe(VECTORS[few], labels[few], kind=kind)
    monkeypatch.setattr(l2_search, "PATIENCE", len(PENALTIES))
    full = fit_probe(VECTORS[few], labels[few], kind=kind)
    assert ended.l2 == full.l2 and torch.equal(ended.weight, full.weight)
    assert ended.losses == pytest.approx({l2: full.losses[l2] for l2 in list(full.losses)[: len(ended.losses)]}, rel=1e-6)
    assert list(full.losses) == PENALTIES and ended.l2 in (PENALTIES[-1], *list(ended.losses)[:-1])


def test_all_penalties_are_tried_where_the_best_one_is_at_the_end_of_the_first_fold(monkeypatch):
    few = slice(0, 100)
    full = fit_probe(VECTORS[few], LABELS[few])
    monkeypatch.setattr(l2_search, "PATIENCE", 0)  # the first fold ends at the first penalty
    ended = fit_probe(VECTORS[few], LABELS[few])
    assert list(ended.losses) == PENALTIES and ended.l2 == full.l2 and torch.equal(ended.weight, full.weight)


def test_a_large_problem_gets_the_penalty_of_all_penalties_and_one_fold(monkeypatch):
    few = slice(0, 300)
    with monkeypatch.context() as patch:
        patch.setattr(l2_search, "PATIENCE", len(PENALTIES))
        full = fit_probe(VECTORS[few], LABELS[few])
    monkeypatch.setattr(l2_search, "MIN_PRODUCTS_TO_SEARCH", 1)
    searched = fit_probe(VECTORS[few], LABELS[few])
    assert searched.l2 == full.l2 and torch.equal(searched.weight, full.weight) and len(searched.losses) < len(full.losses)
    assert searched.losses == pytest.approx({l2: full.losses[l2] for l2 in searched.losses}, rel=1e-2)
    assert searched.held_out is not None and searched.held_out.correct.shape == (1, 300)
    monkeypatch.setattr(l2_search, "MIN_LOGITS_OF_ONE_FOLD", 1)
    once = fit_probe(VECTORS[few], LABELS[few])
    assert once.held_out is not None and len(once.held_out.places) == 60 and once.samples == 300
    assert torch.equal(once.held_out.labels, LABELS[few][once.held_out.places])
    with_val = fit_probe(VECTORS[few], LABELS[few], valid=(VECTORS[300:400], LABELS[300:400]))
    assert with_val.samples == 400 and with_val.held_out is not None and len(with_val.held_out.labels) == 100


def test_a_penalty_that_is_given_twice_is_tried_once():
    some, labels = VECTORS[:100], LABELS[:100]
    once, twice = fit_probe(some, labels, l2=[1.0, 1e-4]), fit_probe(some, labels, l2=[1e-4, 1.0, 1.0])
    assert (twice.l2, twice.losses) == (once.l2, once.losses) and twice.held_out is not None
    assert float(twice.held_out.losses.mean()) == pytest.approx(twice.losses[twice.l2])


def test_penalties_are_compared_at_one_tolerance_however_they_are_grouped(monkeypatch):
    some, labels = VECTORS[:100], LABELS[:100]
    kind, factors = PROBE_KINDS["softmax"], []
    assert kind.coarse_fit is not None

    def coarse(*args, **options):
        factors.append(len(args[3]))
        return kind.coarse_fit(*args, **options)

    monkeypatch.setattr(l2_search, "MIN_PRODUCTS_TO_SEARCH", 1)
    tried, _ = held_out_results(LabelledVectors(some, labels), None, 10, PENALTIES, replace(kind, coarse_fit=coarse), 0)
    assert sum(factors) == 5 * len(tried) and 1 in factors  # in each fold, also of those that are tried alone
