"""Linear probes: fit a linear classifier of features, in closed or convex form, and choose its L2 penalty on held-out features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftlit.errors import UserError, unknown
from ftlit.features.extract import Features
from ftlit.models.heads import LinearHead, PooledHead
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.probes.probe_inputs import check_classes, vectors_and_labels
from ftlit.probes.probe_kinds import PROBE_KINDS, ProbeKind
from ftlit.probes.solver import RegularizationPath
from ftlit.seeding import derived_seed

L2_PENALTIES = tuple(10 ** (1 - i / 4) for i in range(25))  # 10 to 1e-5
FOLDS = 5
MIN_DEVIATION = 1e-6  # of a feature, relative to the largest; one that varies less is taken as constant


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features (N, C); standardisation is folded in.

    Args:
        weight: (K, C), K classes.
        bias: (K,)
        kind: its name in `ftlit.probes.probe_kinds.PROBE_KINDS`.
        l2: L2 penalty on the weights of standardised features.
        samples: number of features that it is fitted on.
        objective: mean loss plus penalty at the solution.
        left: upper bound on what the objective may still fall by, relative to it; see `RegularizationPath`.
        converged: whether `left` is within the tolerance.
        cut: the cut of the features, where it is known.
        pooling: how the features are pooled.
        scores: L2 penalty -> mean accuracy on held-out features; empty where nothing was held out.
        losses: L2 penalty -> mean loss on held-out features, by which the L2 penalty is chosen.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    kind: str
    l2: float
    samples: int
    objective: float
    left: float
    converged: bool
    cut: str | None
    pooling: Pooling
    scores: dict[float, float] = field(repr=False)
    losses: dict[float, float] = field(repr=False)

    @property
    def score(self) -> float | None:
        """Accuracy on held-out features at the chosen L2 penalty; `None` where nothing was held out."""
        return self.scores.get(self.l2)

    @property
    def bound_sign(self) -> str:
        """`≥` where `l2` is the strongest of several that were tried, `≤` where it is the weakest, else empty."""
        return {max(self.losses): "≥", min(self.losses): "≤"}.get(self.l2, "") if len(self.losses) > 1 else ""

    @property
    def sklearn(self) -> str:
        """The same penalty as scikit-learn's argument, `C 0.35` or `alpha 2.9`; empty where there is none."""
        alpha = self.samples * self.l2
        return {"C": f"C {1 / alpha:.2g}", "alpha": f"alpha {alpha:.2g}"}.get(PROBE_KINDS[self.kind].sklearn or "", "")

    @property
    def summary(self) -> str:
        """Kind, L2 penalty (and whether the values that were tried end there), and features."""
        end = {"": "", "≥": ", the largest tried", "≤": ", the smallest tried"}[self.bound_sign]
        cut = f" of {self.cut}" if self.cut is not None else ""
        l2 = ", ".join(filter(None, (f"L2 {self.l2:.1e}{end}", self.sklearn)))
        return f"linear probe ({self.kind}, {l2}) on {self.pooling}-pooled features{cut}"

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, C) -> (N, K), equal to those of the head."""
        return features.to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, C) -> class numbers (N,)."""
        return self.logits(features).argmax(dim=1)

    def accuracy(self, features: Features | Tensor, targets: Tensor | None = None) -> float:
        """Share of features that are classified correctly; targets (N,) default to those of stored features."""
        vectors, labels = vectors_and_labels(features, targets, self.cut)
        if vectors.shape[1] != self.weight.shape[1]:
            raise UserError(
                f"this probe needs features of length {len(self.weight[0])}, not {vectors.shape[1]}: use features of the same cut"
            )
        return float((self.predict(vectors).cpu() == labels.cpu()).double().mean())

    def as_head(self) -> LinearHead | PooledHead:
        """A float32 head with the same logits inside a network; for another pooling than the average it takes feature maps."""
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
    kind: str = "softmax",
    l2: float | Sequence[float] = L2_PENALTIES,
    num_classes: int | None = None,
    valid: tuple[Tensor, Tensor] | Features | None = None,
    seed: int = 0,
    pooling: Pooling = "average",
) -> Probe:
    """Fit a linear classifier of features that are standardised by their own mean and deviation (constant features get weight 0).

    Of several L2 penalties the one with the lowest loss on `valid` is chosen (not the highest accuracy: on few images many L2 penalties
    are equally accurate, but few are calibrated). Without `valid` it is the loss in stratified 5-fold cross-validation: the images of a
    class are spread over the folds; a class of fewer than 5 images is held out in as many folds as it has images, and a class of a single
    image is in all training folds and never held out. The probe is then refitted on everything, `valid` included. A solution that did not
    converge gives a warning.

    Args:
        features: vectors (N, C), or stored features.
        targets: class numbers (N,); `None`: those of the stored features.
        cut: one cut of the stored features; may be left out where they have only one.
        kind: `softmax` (logistic regression), `svm` (squared hinge, one class against the rest), `ridge`, or a registered custom one.
        l2: L2 penalty on the weights, or several to choose from, above 0: mean loss + L2 penalty / 2 * |weight|^2; scikit-learn's C is
            1 / (N L2 penalty).
        num_classes: number of classes; `None`: one more than the largest class number.
        valid: features and targets for the choice of the L2 penalty.
        seed: of the folds.
        pooling: how the vectors were pooled; recorded in the probe, for its head.

    Raises:
        UserError: an unknown cut or kind, an L2 penalty that is not above 0, features that are not vectors of numbers or do not fit into
            memory, targets that are not class numbers or leave a class without an image, fewer than two classes.
    """
    method = PROBE_KINDS[kind]
    if pooling not in POOLINGS:
        raise unknown("pooling", pooling, POOLINGS)
    if isinstance(features, Features):
        if cut is None and len(features.cuts) > 1:
            raise UserError(f"these features are from several cuts: give cut=..., one of {', '.join(features.cuts)}")
        cut = features.cuts[0] if cut is None else cut
    l2_penalties = [float(l2)] if isinstance(l2, int | float) else sorted(map(float, l2), reverse=True)
    if not l2_penalties or not all(0 < value < float("inf") for value in l2_penalties):
        raise UserError(f"l2={l2} of a probe: give L2 penalties above 0")
    vectors, labels = vectors_and_labels(features, targets, cut)
    classes = check_classes(vectors, labels, num_classes)
    if len(vectors) > 1 and bool((vectors == vectors[0]).all()):
        where = "" if cut is None else f" at {cut}"
        warnings.warn(
            f"all feature vectors{where} are equal, so a probe cannot tell the classes apart: check that the images differ (a transparent "
            "image is read as white), and the weights of the backbone",
            stacklevel=2,
        )
    held_out = None if valid is None else _held_out(valid, cut, vectors, labels, classes)
    scores, losses = dict[float, float](), dict[float, float]()
    if len(l2_penalties) > 1 or held_out is not None:
        right, loss = _held_out_results(vectors, labels, classes, l2_penalties, method, held_out, seed)
        scores, losses = (dict(zip(l2_penalties, found.mean(dim=1).tolist(), strict=True)) for found in (right, loss))
    if held_out is not None:
        vectors, labels = torch.cat([vectors, held_out[0]]), torch.cat([labels, held_out[1]])
    best = min(l2_penalties, key=lambda value: losses.get(value, 0.0))
    mean, scale = _scales(vectors)
    path = method.fit((vectors - mean) / scale, labels, classes, [best])
    weight, bias = _folded(path, mean, scale)
    left, converged = path.left[0].item(), bool(path.converged[0])
    if not converged:
        warnings.warn(
            f"the {kind} probe with L2 penalty {best:g} did not converge: its loss may be {left:.3%} above the minimum", stacklevel=2
        )
    return Probe(weight[0], bias[0], kind, best, len(labels), path.objective[0].item(), left, converged, cut, pooling, scores, losses)


def _held_out(
    valid: tuple[Tensor, Tensor] | Features, cut: str | None, vectors: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Vectors and labels of `valid`, checked against those that the probe is fitted on."""
    held_out = vectors_and_labels(*valid, cut) if isinstance(valid, tuple) else vectors_and_labels(valid, None, cut)
    if held_out[0].shape[1] != vectors.shape[1]:
        raise UserError(f"`valid` has features of length {held_out[0].shape[1]}, not {vectors.shape[1]}: use features of the same cut")
    held_out = held_out[0].to(vectors), held_out[1].to(labels)
    check_classes(*held_out, classes, every_class=False)
    return held_out


def folds_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold (N,) that holds out each sample, 0 .. folds - 1, classes spread evenly; -1: never held out, the only one of its class."""
    draw = torch.Generator().manual_seed(derived_seed(seed, folds))
    found, begin = torch.full(labels.shape, -1), 0
    for label in range(int(labels.max()) + 1):
        places = torch.nonzero(labels.cpu() == label)[:, 0]
        if len(places) > 1:
            shuffled = places[torch.randperm(len(places), generator=draw)]
            found[shuffled] = (begin + torch.arange(len(places))) % folds
            begin += len(places)  # small classes do not all begin in the first fold
    return found


def _held_out_results(
    vectors: Tensor,
    labels: Tensor,
    classes: int,
    l2_penalties: Sequence[float],
    kind: ProbeKind,
    held_out: tuple[Tensor, Tensor] | None,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """For each L2 penalty and each of M held-out samples, whether it is classified correctly and its loss: both (S, M) float64."""
    if held_out is not None:
        return _evaluate(vectors, labels, classes, l2_penalties, kind, *held_out)
    fold = folds_of(labels, FOLDS, seed).to(labels.device)
    used = [number for number in range(FOLDS) if bool((fold == number).any())]
    if not used:
        raise UserError(
            "every class has only one example, so none can be held out to choose the L2 penalty: give a single penalty (probe.l2=[0.1]), "
            "or more examples of each class"
        )
    results = [
        _evaluate(vectors[fold != i], labels[fold != i], classes, l2_penalties, kind, vectors[fold == i], labels[fold == i]) for i in used
    ]
    right, losses = (torch.cat(each, dim=1) for each in zip(*results, strict=True))
    return right, losses


def _evaluate(
    vectors: Tensor, labels: Tensor, classes: int, l2_penalties: Sequence[float], kind: ProbeKind, others: Tensor, other_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """See `_held_out_results`; fitted on `vectors`, evaluated on `others`."""
    mean, scale = _scales(vectors)
    path = kind.fit((vectors - mean) / scale, labels, classes, l2_penalties)
    standard = (others - mean) / scale
    right, losses = [], []
    for weight, bias in zip(path.weight, path.bias, strict=True):
        outputs = standard @ weight.T + bias
        numbers = outputs.argmax(dim=1) if classes > 2 else (outputs[:, 0] > 0).long()
        right.append((numbers == other_labels).double())
        losses.append(kind.losses(outputs, other_labels).double())
    return torch.stack(right), torch.stack(losses)


def _scales(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature, (C,). The deviation is 1 for constant features and those that vary much less than the others:
    scaled to 1 they would get weights of millions, and any change of the layers below would dominate the logits (all-MiniLM-L6-v2 has two
    features with a deviation of 1e-33).
    """
    deviation, mean = torch.std_mean(vectors.double(), dim=0, correction=0)
    constant = (deviation <= 10 * torch.finfo(vectors.dtype).eps * mean.abs()) | (deviation <= MIN_DEVIATION * deviation.max())
    return mean.to(vectors.dtype), torch.where(constant, 1.0, deviation).to(vectors.dtype)


def _folded(path: RegularizationPath, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (S, K, C) and biases (S, K) for features that are not standardised, one output per class."""
    weight, bias = path.weight / scale, path.bias - (path.weight / scale) @ mean
    if bias.shape[1] == 1:  # one output z for two classes: logits -z/2 and z/2
        weight, bias = torch.cat([-weight, weight], dim=1) / 2, torch.cat([-bias, bias], dim=1) / 2
    return weight, bias
