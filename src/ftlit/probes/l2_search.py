"""Choose an L2 penalty on held-out features: all until the loss rises are tried, or, where each takes long, those around the best one."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ftlit.probes.cross_validation import FOLDS, HeldOut, LabelledVectors, cross_validate, hold_out
from ftlit.probes.probe_kinds import ProbeKind

MIN_PRODUCTS_TO_SEARCH = 500_000_000  # samples * features * classes; fits at all penalties would take minutes
MIN_LOGITS_OF_ONE_FOLD = 5_000_000  # samples * classes; one fold holds out enough. The same for all probes of a head
PATIENCE = 3  # penalties in turn with a higher loss than the best one, a factor of 6 among `linear_probe.L2_PENALTIES`
COARSE_STEP = 4  # every fourth penalty is tried first, a factor of 10 among `linear_probe.L2_PENALTIES`
ALWAYS_TRIED = 4  # of these


def held_out_results(
    examples: LabelledVectors,
    others: LabelledVectors | None,
    classes: int,
    l2_penalties: Sequence[float],
    kind: ProbeKind,
    seed: int,
    fitted_on: LabelledVectors | None = None,
) -> tuple[Sequence[float], HeldOut]:
    """The L2 penalties that were tried, the strongest first, and the held-out results at these: on `others`, or in cross-validation.

    From `MIN_LOGITS_OF_ONE_FOLD` on, one fold of the five is held out; from `MIN_PRODUCTS_TO_SEARCH` on, penalties are searched. Below, in
    cross-validation, they are tried until the loss of the first fold has been above its lowest for `PATIENCE` penalties: the weakest ones,
    which take longest, are rarely the best.

    Args:
        examples: to fit on.
        others: held out; `None`: cross-validation.
        classes: number of classes.
        l2_penalties: the strongest first.
        kind: of the classifier.
        seed: of the folds.
        fitted_on: in cross-validation, see `cross_validate`.
    """
    folds = 1 if len(examples.labels) * classes >= MIN_LOGITS_OF_ONE_FOLD else FOLDS
    patience = None
    if others is None and len(l2_penalties) > 1 and kind.coarse_fit:  # all penalties alike, however they are grouped
        kind, patience = replace(kind, fit=kind.coarse_fit), PATIENCE

    def results(penalties: Sequence[float], patience: int | None = None) -> HeldOut:
        if others is not None:
            return hold_out(examples, others, classes, penalties, kind)
        return cross_validate(examples, classes, penalties, kind, seed, folds=folds, fitted_on=fitted_on, patience=patience)

    if examples.vectors.numel() * (1 + len(examples.views)) * classes >= MIN_PRODUCTS_TO_SEARCH:
        return search_l2(results, l2_penalties)
    found = results(l2_penalties, patience)
    tried = l2_penalties[: len(found.losses)]
    if len(tried) < len(l2_penalties) and int(found.losses.mean(dim=1).argmin()) == len(tried) - 1:  # the first fold is unlike the others
        return l2_penalties, results(l2_penalties)
    return tried, found


def search_l2(held_out: Callable[[Sequence[float]], HeldOut], l2_penalties: Sequence[float]) -> tuple[list[float], HeldOut]:
    """Held-out results around the L2 penalty with the lowest loss, which falls and then rises from the strongest penalty to the weakest.

    Every fourth penalty is tried, the weakest of them only while the loss falls, because weak penalties take longest; then those between
    the best one and its neighbours.

    Args:
        held_out: results at some penalties, the strongest first.
        l2_penalties: the strongest first.

    Returns:
        The penalties that were tried, the strongest first, and the results at these.
    """
    coarse = list(dict.fromkeys([*l2_penalties[::COARSE_STEP], l2_penalties[-1]]))
    tried = _by_penalty(held_out, coarse[:ALWAYS_TRIED])
    for l2 in coarse[ALWAYS_TRIED:]:
        if _best(tried) != min(tried):
            break
        tried |= _by_penalty(held_out, [l2])
    place = l2_penalties.index(_best(tried))
    near = [l2 for l2 in l2_penalties[max(0, place - COARSE_STEP + 1) : place + COARSE_STEP] if l2 not in tried]
    tried |= _by_penalty(held_out, near) if near else {}
    order = sorted(tried, reverse=True)
    return order, _joined([tried[l2] for l2 in order])


def _by_penalty(held_out: Callable[[Sequence[float]], HeldOut], l2_penalties: Sequence[float]) -> dict[float, HeldOut]:
    found = held_out(l2_penalties)
    return {l2: found.at(place) for place, l2 in enumerate(l2_penalties)}


def _best(tried: dict[float, HeldOut]) -> float:
    return min(tried, key=lambda l2: float(tried[l2].losses.mean()))


def _joined(parts: Sequence[HeldOut]) -> HeldOut:
    """The results at several penalties, on the same samples."""
    logits = [part.logits for part in parts if part.logits is not None]
    return replace(
        parts[0],
        correct=torch.cat([part.correct for part in parts]),
        losses=torch.cat([part.losses for part in parts]),
        logits=torch.cat(logits) if len(logits) == len(parts) else None,
    )
