"""Held-out results of a linear classifier: in stratified cross-validation, or on given features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.probes.probe_kinds import ProbeKind
from ftlit.probes.solver import RegularizationPath
from ftlit.seeding import derived_seed

FOLDS = 5
MAX_LOGITS = 2**25  # numbers, 134 MB in float32
MIN_DEVIATION = 0.1  # of a feature, relative to the median; one that varies less gets weight 0


@dataclass(frozen=True)
class LabelledVectors:
    """Vectors and class numbers to fit a linear classifier on.

    Args:
        vectors: (N, C).
        labels: class numbers (N,).
        views: further vectors (N, C) each of the same examples: augmented views of their images.
        widths: lengths of the features of each cut, which sum to C; empty: one cut.
        groups: of each example, see `folds_of`.
    """

    vectors: Tensor
    labels: Tensor
    views: Sequence[Tensor] = ()
    widths: Sequence[int] = ()
    groups: Sequence[str | None] | None = None

    def at(self, places: Tensor) -> "LabelledVectors":
        """The examples at these places, without their groups."""
        return LabelledVectors(self.vectors[places], self.labels[places], [view[places] for view in self.views], self.widths)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Vectors and class numbers of all views, one after the other."""
        views = 1 + len(self.views)
        return (self.vectors, self.labels) if views == 1 else (torch.cat([self.vectors, *self.views]), self.labels.repeat(views))


@dataclass(frozen=True)
class HeldOut:
    """Results on M examples that were held out, each by the classifiers fitted without it.

    Args:
        labels: class numbers (M,).
        places: (M,), of the examples among all.
        correct: whether each is classified correctly (S, M), for each of S L2 penalties.
        losses: (S, M) float64.
        logits: (S, M, K); `None` where they are too many, see `keeps_logits`.
    """

    labels: Tensor
    places: Tensor
    correct: Tensor
    losses: Tensor
    logits: Tensor | None

    def at(self, place: int) -> "HeldOut":
        """The results at one L2 penalty."""
        logits = None if self.logits is None else self.logits[[place]]
        return HeldOut(self.labels, self.places, self.correct[[place]], self.losses[[place]], logits)


def folds_of(labels: Tensor, folds: int, seed: int, groups: Sequence[str | None] | None = None) -> Tensor:
    """The fold (N,) that holds out each sample, 0 .. folds - 1, classes spread evenly; -1: never held out, the only one of its class.

    Args:
        labels: class numbers (N,).
        folds: number of folds.
        seed: of the random order.
        groups: name of the group of each sample, `None` for one without; samples of one group are held out together, or never: a group that
            has all samples of a class. Where this leaves nothing to hold out, groups are split.
    """
    if groups is not None and any(group is not None for group in groups):
        grouped = _fold_of_groups(labels.cpu(), folds, seed, groups)
        if bool((grouped >= 0).any()):
            return grouped
    draw = torch.Generator().manual_seed(derived_seed(seed, folds))
    found, begin = torch.full(labels.shape, -1), 0
    for label in range(int(labels.max()) + 1):
        places = torch.nonzero(labels.cpu() == label)[:, 0]
        if len(places) > 1:
            shuffled = places[torch.randperm(len(places), generator=draw)]
            found[shuffled] = (begin + torch.arange(len(places))) % folds
            begin += len(places)  # small classes do not all begin in the first fold
    return found


def _fold_of_groups(labels: Tensor, folds: int, seed: int, groups: Sequence[str | None]) -> Tensor:
    """The folds of `folds_of`. The largest groups are placed first, each where there are fewest samples of its classes so far."""
    members: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(place if group is None else group, []).append(place)
    units, numbers = list(members.values()), labels.tolist()
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(derived_seed(seed, folds))).tolist()
    found, total, sizes = torch.full(labels.shape, -1), Counter(numbers), [0] * folds
    counts: list[Counter[int]] = [Counter() for _ in range(folds)]
    for unit in sorted((units[i] for i in order), key=len, reverse=True):
        own = Counter(numbers[place] for place in unit)
        # each class must keep samples to fit on
        possible = [i for i in range(folds) if all(counts[i][label] + n < total[label] for label, n in own.items())]
        if possible:
            crowded = {i: (sum(counts[i][label] * n / total[label] for label, n in own.items()), sizes[i]) for i in possible}
            fold = min(possible, key=crowded.__getitem__)
            found[unit] = fold
            counts[fold].update(own)
            sizes[fold] += len(unit)
    return found


def keeps_logits(classifiers: int, examples: int, classes: int) -> bool:
    """Whether the logits of this number of classifiers are kept: at most `MAX_LOGITS` numbers."""
    return classifiers * examples * classes <= MAX_LOGITS


def cross_validate(
    examples: LabelledVectors,
    classes: int,
    l2_penalties: Sequence[float],
    kind: ProbeKind,
    seed: int,
    *,
    folds: int = FOLDS,
    fitted_on: LabelledVectors | None = None,
    patience: int | None = None,
) -> HeldOut:
    """Results in stratified 5-fold cross-validation. The views of an example are held out together, and the examples of a group; results
    are on the vector of the example itself.

    Args:
        examples: to fit on, and to hold out in turn.
        classes: number of classes.
        l2_penalties: S of them; with `patience` the strongest first.
        kind: of the classifier.
        seed: of the folds.
        folds: how many of the 5 are held out.
        fitted_on: other vectors of the same examples, in their order, to fit on in place of theirs.
        patience: see `hold_out`; the first fold decides at how many penalties there are results. `kind.coarse_fit` is then the fit.

    Raises:
        UserError: no class has two examples.
    """
    fold = folds_of(examples.labels, FOLDS, seed, examples.groups).to(examples.labels.device)
    used = [number for number in range(FOLDS) if bool((fold == number).any())][:folds]
    if not used:
        raise UserError(
            "every class has only one example, so none can be held out to choose the L2 penalty: give a single penalty (probe.l2=[0.1]), "
            "or more examples of each class"
        )
    keeps = keeps_logits(len(l2_penalties), sum(int((fold == number).sum()) for number in used), classes)
    fitted_on = fitted_on or examples
    parts: list[HeldOut] = []
    for i in used:
        data, tried = (fitted_on.at(fold != i), examples.at(fold == i)), l2_penalties[: len(parts[0].losses)] if parts else l2_penalties
        parts.append(hold_out(*data, classes, tried, kind, keeps_logits=keeps, patience=None if parts else patience))
    places = torch.cat([torch.nonzero(fold == i)[:, 0] for i in used])
    correct, losses = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("correct", "losses"))
    logits = torch.cat([part.logits for part in parts if part.logits is not None], dim=1) if keeps else None
    return HeldOut(torch.cat([part.labels for part in parts]), places, correct, losses, logits)


def hold_out(
    examples: LabelledVectors,
    others: LabelledVectors,
    classes: int,
    l2_penalties: Sequence[float],
    kind: ProbeKind,
    *,
    keeps_logits: bool = False,
    patience: int | None = None,
) -> HeldOut:
    """Results on `others` of classifiers that are fitted on `examples`.

    Args:
        examples: to fit on.
        others: held out.
        classes: number of classes.
        l2_penalties: S of them.
        kind: of the classifier.
        keeps_logits: whether the results have the logits.
        patience: number of penalties in a row without a lower mean loss, after which weaker ones are not fitted; `None`: fit all.
    """
    vectors, labels = examples.rows
    mean, inverse = scales(vectors, examples.widths)
    standard = (others.vectors - mean) * inverse
    correct, losses, logits, means = list[Tensor](), list[Tensor](), list[Tensor](), list[float]()

    def add(weight: Tensor, bias: Tensor) -> int:
        """Add the results at the next penalty. Returns how many there are since the best one."""
        outputs = standard @ weight.T + bias
        own = of_every_class(outputs)
        correct.append(own.argmax(dim=1) == others.labels)
        losses.append(kind.losses(outputs, others.labels).double())
        logits.extend([own] if keeps_logits else [])
        means.append(float(losses[-1].mean()))
        return len(means) - 1 - means.index(min(means))

    data = (vectors - mean) * inverse, labels, classes, l2_penalties
    if patience is None:
        path = kind.fit(*data)
        for weight, bias in zip(path.weight, path.bias, strict=True):
            add(weight, bias)
    else:
        kind.fit(*data, ended=lambda weight, bias: add(weight, bias) >= patience)
    places = torch.arange(len(others.labels))
    return HeldOut(others.labels, places, torch.stack(correct), torch.stack(losses), torch.stack(logits) if keeps_logits else None)


def scales(vectors: Tensor, widths: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each feature, (C,). The inverse is 0 for features that vary much less than the others of their cut.

    Scaled to a deviation of 1, those would get the largest weights: the deviation among a handful of images can be a thousandth of what
    it is among others, and any change of the layers below would dominate the logits (all-MiniLM-L6-v2 has two features with a deviation
    of 1e-33).
    """
    deviation, mean = torch.std_mean(vectors.double(), dim=0, correction=0)
    varies = deviation > 10 * torch.finfo(vectors.dtype).eps * mean.abs()
    sizes = list(widths) or [len(deviation)]
    least = [
        own[moves].median().expand(len(own)) if bool(moves.any()) else own
        for own, moves in zip(torch.split(deviation, sizes), torch.split(varies, sizes), strict=True)
    ]
    kept = varies & (deviation > MIN_DEVIATION * torch.cat(least))
    return mean.to(vectors.dtype), torch.where(kept, 1 / deviation, 0.0).to(vectors.dtype)


def folded(path: RegularizationPath, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (S, K, C) and biases (S, K) for features that are not standardised, one output per class."""
    weight = path.weight * inverse
    bias = path.bias - weight @ mean
    if bias.shape[1] == 1:
        return torch.cat([-weight, weight], dim=1) / 2, torch.cat([-bias, bias], dim=1) / 2
    return weight, bias


def of_every_class(outputs: Tensor) -> Tensor:
    """Logits (..., K): for two classes of one output z they are -z/2 and z/2."""
    return torch.cat([-outputs, outputs], dim=-1) / 2 if outputs.shape[-1] == 1 else outputs
