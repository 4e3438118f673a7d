"""The probes of a head: what each `combine` fits, views of the same images, the refit, the head that results."""

from dataclasses import replace

import pytest
import torch

from ftlit import Backbone, InputSpec, UserError, extract_features, fit_probe
from ftlit.models.heads import COMBINES
from ftlit.probes import cross_validation
from ftlit.probes.cross_validation import FOLDS, MIN_DEVIATION, LabelledVectors, cross_validate, folds_of, scales
from ftlit.probes.fitted_head.head_probe import HeadProbe, fit_head, groups_of
from ftlit.probes.layer_probes import LayerProbes
from ftlit.probes.probe_kinds import PROBE_KINDS

CUTS, LABELS, PROBING = ("low", "middle", "top"), torch.arange(40) % 3, LayerProbes(l2=[1.0, 0.1, 0.01])


def vectors(seed: int, noise: float = 1.5) -> torch.Tensor:
    """Features (40, 6) that tell the classes apart in part."""
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.one_hot(LABELS, 6) + noise * torch.randn(40, 6, generator=draw)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Stored features of 40 images at three cuts of widths 4, 6 and 5, and of two noisy views of them."""
    torch.manual_seed(0)
    layers = {
        cut: torch.nn.Sequential(torch.nn.Conv2d(a, b, 2), torch.nn.Tanh()) for cut, a, b in zip(CUTS, (3, 4, 6), (4, 6, 5), strict=True)
    }
    backbone = Backbone(layers, InputSpec(size=6))
    plain = torch.rand(40, 3, 6, 6) + LABELS[:, None, None, None] * 0.2
    images = [plain, *(plain + 0.05 * torch.randn_like(plain) for _ in range(2))]
    store = tmp_path_factory.mktemp("store")
    return [extract_features(backbone, [(view, LABELS)], CUTS, cache=store) for view in images]


def logits(head, features):
    """Logits of a head on stored features."""
    cuts = head.cuts or (CUTS[-1],)
    with torch.no_grad():
        return head(*(features[cut].read(range(len(features))) for cut in cuts))


@pytest.mark.parametrize("kind", PROBE_KINDS)
@pytest.mark.parametrize("combine", COMBINES)
def test_a_head_has_the_logits_of_its_probes_combined(features, combine, kind):
    plain, *views = features
    fitted = fit_head(LayerProbes(kinds=[kind], l2=[0.1]), plain, views, CUTS, combine)
    parts = [fit_probe(plain, cut=group, views=views, kind=kind, l2=0.1) for group in groups_of(CUTS, combine)]
    outputs = [part.logits(torch.cat([plain[cut].read(range(40)) for cut in part.cuts], dim=1)) for part in parts]
    expected = {
        "concat": lambda: outputs[0],
        "blend": lambda: (outputs[0] + outputs[1]) / 2,
        "average": lambda: torch.stack(outputs).softmax(dim=2).mean(dim=0).log(),
    }[combine]()
    torch.testing.assert_close(logits(fitted.as_head(), plain), expected, atol=1e-4, rtol=1e-4)
    assert [part.cuts for part in parts] == {
        "concat": [CUTS], "blend": [("top",), CUTS], "average": [("low",), ("middle",), ("top",)]
    }[combine]  # fmt: skip


def test_a_head_on_one_cut_is_one_probe_however_it_is_combined(features):
    heads = [fit_head(PROBING, features[0], (), ("top",), combine).as_head() for combine in COMBINES]
    assert all(torch.equal(head.weight, heads[0].weight) and head.cuts == () for head in heads)


def test_views_that_are_copies_change_nothing():
    plain = vectors(0)
    alone, copies = (fit_probe(plain, LABELS, views=views, l2=[1.0, 0.1, 0.01]) for views in ((), (plain, plain)))
    assert torch.allclose(alone.weight, copies.weight, atol=1e-3) and alone.l2 == copies.l2
    assert alone.losses == pytest.approx(copies.losses, rel=1e-3)


def test_the_views_of_a_held_out_image_are_held_out_with_it():
    plain, view = vectors(0), vectors(1)
    other = view.clone()
    found = cross_validate(LabelledVectors(plain, LABELS, [view]), 3, [0.1], PROBE_KINDS["softmax"], 0)
    place = int(found.places[0])
    other[place] += 100  # a view of the first held-out image only
    changed = cross_validate(LabelledVectors(plain, LABELS, [other]), 3, [0.1], PROBE_KINDS["softmax"], 0)
    assert torch.equal(found.logits[0, 0], changed.logits[0, 0]) and not torch.equal(found.logits, changed.logits)


def test_views_make_a_probe_better_where_the_features_are_noisy():
    test = torch.cat([vectors(seed) for seed in range(10, 30)])
    labels = LABELS.repeat(20)
    alone, several = (fit_probe(vectors(0), LABELS, views=views) for views in ((), [vectors(seed) for seed in range(1, 5)]))
    assert several.accuracy(test, labels) > alone.accuracy(test, labels) + 0.02


def test_held_out_results_are_those_of_every_image_once():
    probe = fit_probe(vectors(0), LABELS, l2=[1.0, 0.1])
    assert sorted(probe.held_out.places.tolist()) == list(range(40))
    assert torch.equal(LABELS[probe.held_out.places], probe.held_out.labels)
    right = probe.held_out.logits[0].argmax(dim=1) == probe.held_out.labels
    assert torch.equal(right, probe.held_out.correct[0])
    assert probe.score == pytest.approx(right.double().mean())


@pytest.mark.parametrize("combine", COMBINES)
def test_the_score_of_a_head_is_the_accuracy_of_its_combined_held_out_logits(features, combine):
    fitted = fit_head(PROBING, features[0], (), CUTS, combine)
    groups = groups_of(CUTS, combine)
    held_out = [fit_probe(features[0], cut=group, l2=PROBING.l2, seed=PROBING.seed).held_out for group in groups]
    together = sum(own.logits[0].softmax(dim=1) if combine == "average" else own.logits[0] for own in held_out)
    assert fitted.score == pytest.approx((together.argmax(dim=1) == held_out[0].labels).double().mean())
    assert all(part.held_out is None for part in fitted.parts)  # it would be sent to every process


@pytest.mark.parametrize("combine", COMBINES)
def test_held_out_logits_are_those_of_a_head_that_is_fitted_without_the_examples(features, combine):
    fitted = fit_head(PROBING, features[0], features[1:], CUTS, combine)
    found, fold = fitted.held_out_logits, folds_of(LABELS, FOLDS, PROBING.seed)
    assert sorted(found.places.tolist()) == list(range(40)) and torch.equal(LABELS[found.places], found.labels)
    assert fitted.score == pytest.approx((found.logits.argmax(dim=1) == found.labels).double().mean())
    assert fitted.refitted(features[:1], [[]]).held_out_logits is found and found.logits.dtype == torch.float32
    for number in range(FOLDS):
        own, others = (torch.nonzero(chosen)[:, 0] for chosen in (fold == number, fold != number))
        parts = []
        for part in fitted.parts:
            plain, *views = (torch.cat([view[cut].read(range(40)) for cut in part.cuts], dim=1)[others] for view in features)
            probe = fit_probe(plain, LABELS[others], views=views, l2=part.l2, widths=part.widths)
            parts.append(replace(probe, cuts=part.cuts))
        head = HeadProbe(parts, combine, temperature=fitted.temperature).as_head()
        expected = logits(head, features[0])[own].log_softmax(dim=1)
        rows = [found.places.tolist().index(place) for place in own]
        torch.testing.assert_close(found.logits[rows].log_softmax(dim=1), expected, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("combine", COMBINES)
def test_the_refit_has_the_same_penalties_on_all_splits(features, combine):
    plain, *views = features
    fitted = fit_head(PROBING, plain, views, CUTS, combine)
    refitted = fitted.refitted([plain, views[0]], [[views[1]], [plain]])
    assert [part.l2 for part in refitted.parts] == [part.l2 for part in fitted.parts]
    assert all(part.samples == 160 for part in refitted.parts) and refitted.as_head().cuts == CUTS


def test_a_feature_that_hardly_varies_has_weight_zero():
    features = vectors(0)
    features[:, 3] *= 1e-3 / features[:, 3].std()
    assert (scales(features)[1] == 0).tolist() == [False] * 3 + [True] + [False] * 2 and MIN_DEVIATION > 1e-3
    probe = fit_probe(features, LABELS, l2=0.1)
    assert not probe.weight[:, 3].any() and probe.weight[:, :3].all()


def test_views_of_other_images_are_an_error():
    with pytest.raises(
        UserError, match=r"views has a tensor of shape \(40, 5\), but features has \(40, 6\): give views with rows of length 6"
    ):
        fit_probe(vectors(0), LABELS, views=[vectors(1)[:, :5]])
    with pytest.raises(UserError, match=r"targets have the shape \(40,\), but there are 39 feature vectors"):
        fit_probe(vectors(0), LABELS, views=[vectors(1)[:39]])


def test_a_cut_whose_features_vary_less_than_those_of_another_is_read_too():
    both = torch.cat([vectors(0) * 1e-3, vectors(1)], dim=1)
    probe = fit_probe(both, LABELS, l2=0.1, widths=[6, 6])
    assert probe.weight[:, :6].any() and probe.weight[:, 6:].any()
    scaled = fit_probe(torch.cat([vectors(0), vectors(1)], dim=1), LABELS, l2=0.1)
    assert torch.allclose(probe.weight[:, :6] * 1e-3, scaled.weight[:, :6], atol=1e-3)


def test_cuts_are_read_in_the_order_of_the_network_however_they_are_given(features):
    there, back = (fit_probe(features[0], cut=cuts, l2=0.1) for cuts in (["low", "top"], ["top", "low"]))
    assert back.cuts == ("low", "top") and torch.equal(there.weight, back.weight)


@pytest.mark.parametrize(
    ("cut", "message"), [([], r"cut=\[\]: give the name of at least one cut"), (["low", "low"], "names 'low' more than once: give")]
)
def test_no_cut_and_one_that_is_given_twice_are_errors(features, cut, message):
    with pytest.raises(UserError, match=message):
        fit_probe(features[0], cut=cut)


def test_several_cuts_of_vectors_and_of_another_pooling_are_errors(features):
    with pytest.raises(UserError, match=r"cut=\['low', 'top'\] needs the Features that extract_features returns"):
        fit_probe(vectors(0), LABELS, cut=["low", "top"])
    with pytest.raises(UserError, match="pooling='max' does not support several cuts"):
        fit_probe(features[0], cut=["low", "top"], pooling="max")


def test_logits_that_would_fill_the_memory_are_not_kept(monkeypatch, features):
    monkeypatch.setattr(cross_validation, "MAX_LOGITS", 40 * 3 - 1)
    probe = fit_probe(vectors(0), LABELS, l2=[1.0, 0.1])
    fitted = fit_head(LayerProbes(l2=[1.0, 0.1]), features[0], (), CUTS)
    assert fitted.held_out_logits is None and fitted.score == fitted.parts[0].score is not None
    assert probe.held_out.logits is None and probe.score == pytest.approx(probe.held_out.correct.double().mean())


@pytest.mark.parametrize("combine", COMBINES)
def test_where_those_of_all_penalties_would_fill_it_the_logits_of_the_chosen_one_are_kept(monkeypatch, features, combine):
    plain, *views = features
    whole = fit_head(PROBING, plain, views, CUTS, combine, "balanced")
    monkeypatch.setattr(cross_validation, "MAX_LOGITS", len(whole.parts) * 40 * 3)
    fitted = fit_head(PROBING, plain, views, CUTS, combine, "balanced")
    assert torch.equal(fitted.held_out_logits.places, whole.held_out_logits.places) and fitted.score == whole.score
    torch.testing.assert_close(fitted.held_out_logits.logits, whole.held_out_logits.logits, atol=0.1, rtol=0)  # both have converged
    assert fitted.temperature == pytest.approx(whole.temperature, rel=0.05)


@pytest.mark.parametrize("combine", COMBINES)
def test_the_probes_of_a_head_and_of_its_refit_have_the_class_weights(features, combine):
    plain, *views = features
    fitted = fit_head(LayerProbes(l2=[0.1]), plain, views, CUTS, combine, [1.0, 5.0, 0.2])
    again = fitted.refitted([plain, plain], [views, views])
    for probe in (fitted, again):
        for part in probe.parts:
            own = fit_probe(plain, cut=part.cuts, views=views, l2=0.1, class_weights=[1.0, 5.0, 0.2])
            assert part.class_weights == [1.0, 5.0, 0.2] and part.objective == pytest.approx(own.objective, rel=1e-4)
    counted = fit_head(LayerProbes(l2=[0.1]), plain, views, CUTS, combine, "balanced").refitted([plain, plain], [views, views])
    assert counted.parts[0].class_weights == pytest.approx([40 / (3 * number) for number in (14, 13, 13)])
