"""Linear probes: fit a linear classifier of features, in closed or convex form, and choose its L2 penalty on held-out features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftlit.errors import UserError, invalid
from ftlit.features.extract import Features
from ftlit.finetuning.losses import ClassWeights, describe_weights, weights_of_classes
from ftlit.models.heads import LinearHead, PooledHead
from ftlit.models.pooling import POOLINGS, Pooling
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.probes.cross_validation import HeldOut, folded, scales
from ftlit.probes.l2_search import held_out_results
from ftlit.probes.probe_inputs import cuts_of, read_examples, valid_examples, vectors_and_labels
from ftlit.probes.probe_kinds import PROBE_KINDS

L2_PENALTIES = tuple(10 ** (1 - i / 4) for i in range(25))  # 10 to 1e-5
NEGLIGIBLE = 1e-5  # an L2 penalty below which nothing changes: glyph on digits has one held-out accuracy from 1e-4 to 1e-8


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
        cuts: the cuts of the features, where they are known; those of several are concatenated.
        widths: length of the features at each cut; they sum to C.
        pooling: how the features are pooled.
        scores: L2 penalty -> mean accuracy on held-out features; empty where nothing was held out.
        losses: L2 penalty -> mean loss on held-out features, by which the L2 penalty is chosen.
        held_out: results on the held-out features at the chosen L2 penalty; `None` where nothing was held out.
        class_weights: of each class in the objective; `None`: none.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    kind: str
    l2: float
    samples: int
    objective: float
    left: float
    converged: bool
    cuts: Sequence[str]
    widths: Sequence[int]
    pooling: Pooling
    scores: dict[float, float] = field(repr=False)
    losses: dict[float, float] = field(repr=False)
    held_out: HeldOut | None = field(default=None, repr=False)
    class_weights: Sequence[float] | None = field(default=None, repr=False)

    @property
    def cut(self) -> str | None:
        """Name of the cut, several joined by a comma; `None` where it is not known."""
        return ", ".join(self.cuts) or None

    @property
    def score(self) -> float | None:
        """Accuracy on held-out features at the chosen L2 penalty; `None` where nothing was held out."""
        return self.scores.get(self.l2)

    @property
    def bound_sign(self) -> str:
        """`≥` where `l2` is the strongest of several that were tried, `≤` where it is the weakest and not negligible, else empty."""
        ends = {max(self.losses): "≥", min(self.losses): "≤"} if len(self.losses) > 1 else {}
        return "" if self.l2 <= NEGLIGIBLE else ends.get(self.l2, "")

    @property
    def sklearn(self) -> str:
        """The same penalty as scikit-learn's argument, `C 0.35` or `alpha 2.9`; empty where there is none."""
        alpha = self.samples * self.l2
        return {"C": f"C {1 / alpha:.2g}", "alpha": f"alpha {alpha:.2g}"}.get(PROBE_KINDS[self.kind].sklearn or "", "")

    @property
    def summary(self) -> str:
        """Kind, L2 penalty (and whether the values that were tried end there), and features."""
        words = {"≥": ("largest", "larger"), "≤": ("smallest", "smaller")}.get(self.bound_sign)
        end = f"; this L2 is the {words[0]} tried, a {words[1]} one may be better" if words else ""
        cut = f" of {self.cut}" if self.cut is not None else ""
        weights = "" if self.class_weights is None else describe_weights(self.class_weights)
        l2 = ", ".join(filter(None, (f"L2 {self.l2:.1e}", self.sklearn and f"scikit-learn's {self.sklearn}", weights)))
        return f"linear probe ({self.kind}, {l2}{end}) on {self.pooling}-pooled features{cut}"

    def logits(self, features: Tensor) -> Tensor:
        """Features (N, C) -> (N, K), equal to those of the head."""
        return features.to(self.weight) @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """Features (N, C) -> class numbers (N,)."""
        return self.logits(features).argmax(dim=1)

    def accuracy(self, features: Features | Tensor, targets: Tensor | None = None) -> float:
        """Share of features that are classified correctly; targets (N,) default to those of stored features."""
        vectors, labels = vectors_and_labels(features, targets, self.cuts)
        if vectors.shape[1] != self.weight.shape[1]:
            raise UserError(
                f"this probe was fitted on features of length {len(self.weight[0])}, but these have length {vectors.shape[1]}: use "
                "features of the cut that it was fitted on"
            )
        return float((self.predict(vectors).cpu() == labels.cpu()).double().mean())

    def as_head(self) -> LinearHead | PooledHead:
        """A float32 head with the same logits inside a network; for another pooling than the average it takes feature maps.

        The `origin` of its linear layer says that it is fitted, so that `examine` does not warn of random weights.
        """
        width, classes = self.weight.shape[1], len(self.bias)
        if len(self.cuts) > 1:
            head: LinearHead | PooledHead = LinearHead(self.widths, classes, cuts=self.cuts)
        else:
            head = LinearHead(width, classes) if self.pooling == "average" else PooledHead(width, classes, self.pooling)
        linear = head if isinstance(head, LinearHead) else head.linear
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            linear.bias.copy_(self.bias)
        linear.origin = WeightsOrigin("custom", "linear probe")  # type: ignore[assignment]
        return head


def fit_probe(
    features: Features | Tensor,
    targets: Tensor | None = None,
    *,
    cut: str | Sequence[str] | None = None,
    views: Sequence[Features | Tensor] = (),
    kind: str = "softmax",
    l2: float | Sequence[float] = L2_PENALTIES,
    num_classes: int | None = None,
    valid: tuple[Tensor, Tensor] | Features | None = None,
    refit: bool = True,
    seed: int = 0,
    pooling: Pooling = "average",
    widths: Sequence[int] | None = None,
    class_weights: ClassWeights | Tensor | None = None,
) -> Probe:
    """Fit a linear classifier of features that are standardised by their own mean and deviation (features that hardly vary get weight 0).

    Of several L2 penalties the one with the lowest loss on `valid` is chosen (not the highest accuracy: on few images many L2 penalties
    are equally accurate, but few are calibrated). Without `valid` it is the loss in stratified 5-fold cross-validation: the images of a
    class are spread over the folds; a class of fewer than 5 images is held out in as many folds as it has images, and a class of a single
    image is in all training folds and never held out. Images of one group (see `Features`) are held out together. The probe is then
    refitted on everything, `valid` included (see `refit`). A solution that did not converge gives a warning. In cross-validation, weaker
    L2 penalties are tried only until the loss rises. Of many features of many classes only one of the five folds is held out, and only
    L2 penalties around the best one are tried; see `ftlit.probes.l2_search.held_out_results`.

    Args:
        features: vectors (N, C), or stored features.
        targets: class numbers (N,); `None`: those of the stored features.
        cut: one cut of the stored features, or several, whose features are concatenated; may be left out where they have only one.
        views: further features of the same images in the same order, of augmented views. They are fitted on too; results on held-out
            images are on `features` alone.
        kind: `softmax` (logistic regression), `svm` (squared hinge, one class against the rest), `ridge`, or a registered custom one.
        l2: L2 penalty on the weights, or several to choose from, above 0: mean loss + L2 penalty / 2 * |weight|^2; scikit-learn's C is
            1 / (N L2 penalty).
        num_classes: number of classes; `None`: one more than the largest class number.
        valid: features and targets for the choice of the L2 penalty.
        refit: whether the last fit includes `valid`; else it is on `features` and `views` alone.
        seed: of the folds.
        pooling: how the vectors were pooled; recorded in the probe, for its head.
        widths: lengths of the features of each cut in concatenated vectors; `None`: those of the stored features, or one cut.
        class_weights: the loss of each feature is multiplied by the weight of its class, as by scikit-learn's `class_weight`. `balanced`:
            N / (number of classes * features of the class); or a number above 0 for each class. In cross-validation, the weights are those
            of all features, not of each fold, and weight the held-out loss too (but not the accuracy). With `valid`, `balanced` is counted
            again on everything for the last fit. Standardisation is not weighted.

    Raises:
        UserError: an unknown cut or kind, an L2 penalty that is not above 0, features that are not vectors of numbers or do not fit into
            memory, views of other lengths, targets that are not class numbers or leave a class without an image, fewer than two classes.
    """
    plain = PROBE_KINDS[kind]
    if pooling not in POOLINGS:
        raise invalid("pooling", pooling, POOLINGS)
    cuts = cuts_of(features, cut)
    l2_penalties = _descending(l2)
    if len(cuts) > 1 and pooling != "average":
        raise UserError(f"pooling={pooling!r} does not support several cuts: give pooling='average', or one cut")
    examples, classes = read_examples(features, targets, cuts, views, widths, num_classes)
    if len(examples.vectors) > 1 and bool((examples.vectors == examples.vectors[0]).all()):
        where = f" at {', '.join(cuts)}" if cuts else ""
        warnings.warn(
            f"all feature vectors{where} are equal, so a probe cannot tell the classes apart: check that the images differ (a transparent "
            "image is read as white), and the weights of the backbone",
            stacklevel=2,
        )
    others = None if valid is None else valid_examples(valid, cuts, examples, classes)
    method = plain.with_weights(weights := _class_weights(examples.labels, classes, class_weights))
    held_out, scores, losses = None, dict[float, float](), dict[float, float]()
    if others is not None or len(l2_penalties) > 1:
        tried, held_out = held_out_results(examples, others, classes, l2_penalties, method, seed)
        means = (held_out.correct.double().mean(dim=1).tolist(), held_out.losses.mean(dim=1).tolist())
        scores, losses = (dict(zip(tried, values, strict=True)) for values in means)
    best = min(losses or l2_penalties, key=lambda value: losses.get(value, 0.0))
    vectors, labels = examples.rows
    if others is not None and refit:
        vectors, labels = torch.cat([vectors, others.vectors]), torch.cat([labels, others.labels])
        method = plain.with_weights(weights := _class_weights(labels, classes, class_weights))
    mean, inverse = scales(vectors, examples.widths)
    path = method.fit((vectors - mean) * inverse, labels, classes, [best])
    weight, bias = folded(path, mean, inverse)
    left, converged = path.left[0].item(), bool(path.converged[0])
    if not converged:
        warnings.warn(
            f"the {kind} probe with L2 penalty {best:g} did not converge: its loss may be {left:.3%} above the minimum", stacklevel=2
        )
    return Probe(
        weight[0],
        bias[0],
        kind,
        best,
        len(labels),
        path.objective[0].item(),
        left,
        converged,
        cuts,
        examples.widths,
        pooling,
        scores,
        losses,
        held_out and held_out.at(list(losses).index(best)),
        weights,
    )


def _descending(l2: float | Sequence[float]) -> list[float]:
    """The L2 penalties to try, the strongest first. Raises `UserError` for one that is not above 0."""
    penalties = [float(l2)] if isinstance(l2, int | float) else sorted(set(map(float, l2)), reverse=True)
    if not penalties or not all(0 < value < float("inf") for value in penalties):
        raise UserError(f"l2={l2} is not valid: give L2 penalties above 0")
    return penalties


def _class_weights(labels: Tensor, classes: int, given: ClassWeights | Tensor | None) -> list[float] | None:
    """The weight of each class."""
    given = given.tolist() if isinstance(given, Tensor) else given
    return None if given is None else weights_of_classes(torch.bincount(labels, minlength=classes).tolist(), given)
