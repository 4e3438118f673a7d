"""A linear probe: how well the features at a cut tell the classes apart, by a classifier that is solved rather than trained."""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftlit.errors import UserError, unknown
from ftlit.features.extract import Features
from ftlit.formatting import size_in_words
from ftlit.models.heads import LinearHead, PooledHead
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.probes.objectives import KINDS, Kind, losses_of
from ftlit.probes.solver import Path, solve
from ftlit.seeding import derived_seed

L2_PENALTIES = tuple(10 ** (1 - i / 4) for i in range(25))  # 10 to 1e-5
FOLDS = 5
NEGLIGIBLE = 1e-6  # a deviation, beside the largest
COPIES = 8  # of the features, and of the outputs, that solving holds at a time


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features (N, C); standardisation is folded in.

    Args:
        weight: (K, C), K classes.
        bias: (K,)
        kind: of the loss that it minimises, see `ftlit.probes.solver.solve`.
        l2: of the penalty, on standardised features.
        objective: mean loss and penalty at the solution.
        left: what it may still fall by, relative to it; see `ftlit.probes.solver.Path`.
        converged: whether that is within the tolerance.
        cut: that the features are of, where that is known.
        pooling: how they are pooled.
        scores: L2 penalty -> mean accuracy on held-out features, where something was held out.
        losses: L2 penalty -> mean loss on held-out features, by which the L2 penalty is chosen.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    kind: Kind
    l2: float
    objective: float
    left: float
    converged: bool
    cut: str | None
    pooling: Pooling
    scores: dict[float, float] = field(repr=False)
    losses: dict[float, float] = field(repr=False)

    @property
    def score(self) -> float | None:
        """The accuracy on held-out features of the L2 penalty that was chosen; `None` where nothing was held out."""
        return self.scores.get(self.l2)

    @property
    def at_end(self) -> str:
        """`≥` where no stronger one of several L2 penalties was tried, `≤` where no weaker one."""
        return {max(self.losses): "≥", min(self.losses): "≤"}.get(self.l2, "") if len(self.losses) > 1 else ""

    @property
    def told(self) -> str:
        """Kind, features and L2 penalty in words, and whether the L2 penalties that were tried end there."""
        ends = {"": "", "≥": ", the strongest tried", "≤": ", the weakest tried"}
        where = f" at {self.cut}" if self.cut is not None else ""
        return f"{self.kind} of {self.pooling} features{where}, L2 penalty {self.l2:.1e}{ends[self.at_end]}"

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, C) -> (N, K), as the head gives them."""
        return features.to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, C) -> class numbers (N,)."""
        return self.logits(features).argmax(dim=1)

    def accuracy(self, features: Features | Tensor, targets: Tensor | None = None) -> float:
        """The share of features whose class it tells; targets (N,) are those of the features where nothing else is given."""
        vectors, labels = _vectors(features, targets, self.cut)
        if vectors.shape[1] != self.weight.shape[1]:
            raise UserError(
                f"this probe is of features of length {self.weight.shape[1]}, and these have {vectors.shape[1]}: give the same cut"
            )
        return float((self.predict(vectors).cpu() == labels.cpu()).double().mean())

    def as_head(self) -> LinearHead | PooledHead:
        """A head, float32, that gives the same logits inside a network; of another pooling than the average it takes maps."""
        width, classes = self.weight.shape[1], len(self.bias)
        head = LinearHead(width, classes) if self.pooling == "average" else PooledHead(width, classes, self.pooling)
        linear = head if isinstance(head, LinearHead) else head.linear
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        return head


def fit_probe(
    features: Features | Tensor,
    targets: Tensor | None = None,
    *,
    cut: str | None = None,
    kind: Kind = "softmax",
    l2: float | Sequence[float] = L2_PENALTIES,
    num_classes: int | None = None,
    valid: tuple[Tensor, Tensor] | Features | None = None,
    seed: int = 0,
    pooling: Pooling = "average",
) -> Probe:
    """Solve a linear classifier of features, standardised by their own mean and deviation (constant columns stay 0).

    Of several L2 penalties the one is taken whose loss on `valid` is least: on few images many are equally accurate, and few of these know
    how sure they may be. Without `valid` it is the loss in stratified cross-validation of 5 folds: the images of a class are spread over
    them; a class of fewer than 5 images is in as many folds as it has images, and a class of a single image is trained on in all of them
    and never held out. The probe is then solved again on everything, `valid` too.

    Args:
        features: vectors (N, C), or features that are stored.
        targets: class numbers (N,); those of the stored features where nothing else is given.
        cut: which of the stored features; it may be left out where they are of one cut.
        kind: `softmax` (logistic regression), `svm` (squared hinge, one class against the rest), `ridge`.
        l2: of the L2 penalty on the weights, above 0: mean loss + L2 penalty / 2 * |weight|^2; scikit-learn's C is 1 / (N L2 penalty).
        num_classes: how many there are; `None`: one more than the largest number.
        valid: features and targets to choose by.
        seed: of the folds.
        pooling: how the vectors were pooled; noted in the probe, for its head.

    Warns where the solution did not converge; `Probe.converged` and `Probe.left` say so too.

    Raises:
        UserError: no such cut or kind, an L2 penalty that is not above 0, features that are no vectors of numbers or do not fit into memory,
            targets that are no class numbers or leave a class without an image, fewer than two classes.
    """
    for what, given, options in (("kind of probe", kind, KINDS), ("pooling", pooling, POOLINGS)):
        if given not in options:
            raise unknown(what, given, options)
    if isinstance(features, Features):
        if cut is None and len(features.cuts) > 1:
            raise UserError(f"these features are of several cuts: give cut=, one of {', '.join(features.cuts)}")
        cut = features.cuts[0] if cut is None else cut
    l2_penalties = [float(l2)] if isinstance(l2, int | float) else sorted(map(float, l2), reverse=True)
    if not l2_penalties or not all(0 < value < float("inf") for value in l2_penalties):
        raise UserError(f"probe with L2 penalty {l2}: give numbers above 0")
    vectors, labels = _vectors(features, targets, cut)
    classes = _check(vectors, labels, num_classes)
    scores, losses = dict[float, float](), dict[float, float]()
    if len(l2_penalties) > 1 or valid is not None:
        held_out = None
        if valid is not None:
            held_out = _vectors(*valid, cut) if isinstance(valid, tuple) else _vectors(valid, None, cut)
            if held_out[0].shape[1] != vectors.shape[1]:
                raise UserError(
                    f"valid has features of length {held_out[0].shape[1]}, and the others {vectors.shape[1]}: give the same cut"
                )
            held_out = held_out[0].to(vectors), held_out[1].to(labels)
            _check(*held_out, classes, every_class=False)
        right, loss = (found.mean(dim=1).tolist() for found in _held_out(vectors, labels, classes, l2_penalties, kind, held_out, seed))
        scores, losses = dict(zip(l2_penalties, right, strict=True)), dict(zip(l2_penalties, loss, strict=True))
        if held_out is not None:
            vectors, labels = torch.cat([vectors, held_out[0]]), torch.cat([labels, held_out[1]])
    best = min(l2_penalties, key=lambda value: losses.get(value, 0.0))
    mean, scale = _scales(vectors)
    path = solve((vectors - mean) / scale, labels, classes, [best], kind)
    weight, bias = _folded(path, mean, scale)
    objective, left, converged = float(path.objective[0]), float(path.left[0]), bool(path.converged[0])
    if not converged:
        warnings.warn(f"the {kind} probe of L2 penalty {best:g} did not converge: its objective may be {left:.3%} too high", stacklevel=2)
    return Probe(weight[0], bias[0], kind, best, objective, left, converged, cut, pooling, scores, losses)


def folds_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold (N,) in which each sample is held out, 0 .. folds - 1, each class spread evenly; -1: the only one of its class, in none."""
    draw = torch.Generator().manual_seed(derived_seed(seed, folds))
    found, begin = torch.full(labels.shape, -1), 0
    for label in range(int(labels.max()) + 1):
        places = torch.nonzero(labels.cpu() == label)[:, 0]
        if len(places) > 1:
            shuffled = places[torch.randperm(len(places), generator=draw)]
            found[shuffled] = (begin + torch.arange(len(places))) % folds
            begin += len(places)  # small classes do not all begin in the first fold
    return found


def _held_out(
    vectors: Tensor,
    labels: Tensor,
    classes: int,
    l2_penalties: Sequence[float],
    kind: Kind,
    held_out: tuple[Tensor, Tensor] | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Whether each L2 penalty tells the class of each of M held-out samples, and its loss there: both (S, M) float64."""
    if held_out is not None:
        return _looked_at(vectors, labels, classes, l2_penalties, kind, *held_out)
    fold = folds_of(labels, FOLDS, seed).to(labels.device)
    used = [number for number in range(FOLDS) if bool((fold == number).any())]
    if not used:
        raise UserError("no class has two images, so that none can be held out: give one L2 penalty (probe.l2=[0.1]), or more images")
    looks = [
        _looked_at(vectors[fold != i], labels[fold != i], classes, l2_penalties, kind, vectors[fold == i], labels[fold == i]) for i in used
    ]
    right, losses = (torch.cat(each, dim=1) for each in zip(*looks, strict=True))
    return right, losses


def _looked_at(
    vectors: Tensor, labels: Tensor, classes: int, l2_penalties: Sequence[float], kind: Kind, others: Tensor, other_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """See `_held_out`; solved on some, looked at on others."""
    mean, scale = _scales(vectors)
    path = solve((vectors - mean) / scale, labels, classes, l2_penalties, kind)
    standard = (others - mean) / scale
    right, losses = [], []
    for weight, bias in zip(path.weight, path.bias, strict=True):
        outputs = standard @ weight.T + bias
        numbers = outputs.argmax(dim=1) if classes > 2 else (outputs[:, 0] > 0).long()
        right.append((numbers == other_labels).double())
        losses.append(losses_of(outputs, other_labels, kind).double())
    return torch.stack(right), torch.stack(losses)


def _scales(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column, (C,); 1 for a constant one, and for one that hardly counts beside the others: at its own scale it
    would get a weight of millions, which any change of the features below turns into nonsense (all-MiniLM-L6-v2 has two of 1e-33).
    """
    deviation, mean = torch.std_mean(vectors.double(), dim=0, correction=0)
    constant = (deviation <= 10 * torch.finfo(vectors.dtype).eps * mean.abs()) | (deviation <= NEGLIGIBLE * deviation.max())
    return mean.to(vectors.dtype), torch.where(constant, 1.0, deviation).to(vectors.dtype)


def _folded(path: Path, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (S, K, C) and biases (S, K) for features that are not standardised, one output for each class."""
    weight, bias = path.weight / scale, path.bias - (path.weight / scale) @ mean
    if bias.shape[1] == 1:  # one output z for two classes: logits -z/2 and z/2
        weight, bias = torch.cat([-weight, weight], dim=1) / 2, torch.cat([-bias, bias], dim=1) / 2
    return weight, bias


def _vectors(features: Features | Tensor | None, targets: Tensor | None, cut: str | None) -> tuple[Tensor, Tensor]:
    """Vectors (N, C), at least float32, and class numbers (N,) where they are."""
    if isinstance(features, Features):
        rows = features[features.cuts[0] if cut is None else cut]
        targets = features.targets if targets is None else targets
        outputs = int(targets.max()) + 1 if isinstance(targets, Tensor) and len(targets) else 0
        _check_memory(len(rows), max(4, rows.dtype.itemsize) * (math.prod(rows.shape) + outputs))
        features = rows.read(range(len(rows)))
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"a probe takes vectors (N, C) of floats, and these features are {shape}: pool them")
    if not isinstance(targets, Tensor) or targets.shape != features.shape[:1] or targets.is_floating_point():
        given = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise UserError(
            f"a probe takes a class number for each of {len(features)} features, an integer tensor ({len(features)},), and the targets are "
            f"{'missing' if targets is None else given}"
        )
    return features if features.dtype == torch.float64 else features.float(), targets.to(features.device, torch.int64)


def _check(vectors: Tensor, labels: Tensor, num_classes: int | None, *, every_class: bool = True) -> int:
    """The number of classes. Raises `UserError` for what cannot be solved."""
    if not len(labels):
        raise UserError("there are no features: a probe needs some of each class")
    if not bool(vectors.isfinite().all()):
        bad = int((~vectors.isfinite()).any(dim=1).nonzero()[0])
        raise UserError(f"features hold NaN or infinity, first in row {bad}: look at that image, or at the dtype of the features")
    least, most = int(labels.min()), int(labels.max())
    classes = most + 1 if num_classes is None else num_classes
    if least < 0 or most >= classes:
        allowed = "class numbers begin at 0" if num_classes is None else f"class numbers go from 0 to {classes - 1}"
        raise UserError(f"targets from {least} to {most}: {allowed}")
    if classes < 2:
        raise UserError("all targets are 0: a probe tells at least two classes apart")
    present = torch.bincount(labels, minlength=classes)
    if every_class and not bool(present.all()):
        lacking = present.eq(0).nonzero()[:, 0].tolist()
        raise UserError(
            f"{len(labels)} features of {classes} classes, and class {lacking[0]} has none: give each class one, or leave it out"
        )
    return classes


def _check_memory(rows: int, row_bytes: int) -> None:
    needed, held = COPIES * rows * row_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > held:
        raise UserError(
            f"solving on {rows:,} features needs {size_in_words(needed)} of memory, this machine has {size_in_words(held)}: take fewer "
            "images (data.per_class), a cut with shorter features, or pooled ones"
        )
