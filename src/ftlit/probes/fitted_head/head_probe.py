"""The linear probes of a head: one or several, on the features of its cuts, which `combine` makes one head of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.features.extract import Features
from ftlit.finetuning.losses import ClassWeights
from ftlit.formatting import count
from ftlit.models.heads import Combine, LinearHead, PooledHead
from ftlit.probes.cross_validation import LabelledVectors, keeps_logits
from ftlit.probes.fitted_head.calibration import fit_temperature
from ftlit.probes.l2_search import held_out_results
from ftlit.probes.layer_probes import LayerProbes, best_of
from ftlit.probes.linear_probe import L2_PENALTIES, Probe, fit_probe
from ftlit.probes.probe_inputs import vectors_and_labels
from ftlit.probes.probe_kinds import PROBE_KINDS


@dataclass(frozen=True)
class HeldOutLogits:
    """Logits of a head on M examples that were held out, each of the probes fitted without it; see `cross_validate`.

    Args:
        labels: class numbers (M,).
        places: (M,), of the examples among all.
        logits: (M, K) float32.
    """

    labels: Tensor
    places: Tensor
    logits: Tensor


@dataclass(frozen=True)
class HeadProbe:
    """The linear probes that make up a head.

    Args:
        parts: one for each group of cuts, see `groups_of`.
        combine: how they become one head, see `LinearProbeHead`.
        views: number of augmented views that they were fitted on besides the plain one.
        score: accuracy of the head on held-out features; `None` where nothing was held out.
        held_out: number of these features: of one fold where there are many, see `held_out_results`.
        held_out_logits: of the head that was fitted on train, also where this one is refitted, at its temperature; `None` where nothing
            was held out, or where they are too many even at the chosen L2 penalties, see `keeps_logits`.
        temperature: by which the logits of the probes are divided, see `fit_temperature`; 1 where nothing was held out.
        class_weights: see `fit_probe`; `balanced` is counted again where the probes are refitted.
    """

    parts: Sequence[Probe]
    combine: Combine = "concat"
    views: int = 0
    score: float | None = None
    held_out: int = 0
    held_out_logits: HeldOutLogits | None = field(default=None, repr=False)
    temperature: float = 1.0
    class_weights: ClassWeights | None = None

    @property
    def summary(self) -> str:
        """Kind, L2 penalty and features of each probe."""
        parts = "; ".join(part.summary.removeprefix("linear probe ") for part in self.parts)
        what = f"a linear probe {parts}" if len(self.parts) == 1 else f"the mean of {len(self.parts)} linear probes: {parts}"
        return f"{what}, and on {count(self.views, 'augmented view')} of each image" if self.views else what

    def as_head(self) -> LinearHead | PooledHead:
        """A float32 head with the logits of the probes, divided by the temperature."""
        head = self._combined()
        linear = _linear(head)
        return _filled(head, linear.weight / self.temperature, linear.bias / self.temperature)

    def _combined(self) -> LinearHead | PooledHead:
        if len(self.parts) == 1:
            return self.parts[0].as_head()
        if self.combine == "average":
            cuts, widths = ([one for part in self.parts for one in getattr(part, name)] for name in ("cuts", "widths"))
            weight, bias = torch.cat([part.weight for part in self.parts], dim=1), torch.cat([part.bias for part in self.parts])
            return _filled(LinearHead(widths, len(weight), cuts=cuts, combine="average"), weight, bias)
        top, every = self.parts
        weight, bias = every.weight.clone(), (every.bias + top.bias) / 2
        weight[:, -top.weight.shape[1] :] += top.weight
        return _filled(LinearHead(every.widths, len(bias), cuts=every.cuts), weight / 2, bias)

    def refitted(self, features: Sequence[Features], views: Sequence[Sequence[Features]]) -> "HeadProbe":
        """Fit the same probes, with the same L2 penalties, on several splits together.

        Args:
            features: of each split.
            views: the augmented views of each split.
        """
        parts = []
        for part in self.parts:
            plain = [vectors_and_labels(split, None, part.cuts, views=len(views[0])) for split in features]
            vectors, labels = (torch.cat(tensors) for tensors in zip(*plain, strict=True))
            augmented = [
                torch.cat([vectors_and_labels(split, None, part.cuts)[0] for split in of_view]) for of_view in zip(*views, strict=True)
            ]
            options: dict[str, Any] = {"kind": part.kind, "l2": part.l2, "pooling": part.pooling, "widths": part.widths}
            fitted = fit_probe(vectors, labels, views=augmented, class_weights=self.class_weights, **options)
            parts.append(replace(fitted, cuts=part.cuts))
        return replace(self, parts=parts)


def _held_out_logits(parts: Sequence[Probe], combine: Combine) -> tuple[HeldOutLogits | None, float]:
    """Combine the held-out logits of the probes, at the temperature that suits them, as the head combines their logits.

    They are held out in the same folds. Returns the temperature too.
    """
    found = [part.held_out for part in parts if part.held_out is not None]
    logits = [held_out.logits[0] for held_out in found if held_out.logits is not None]
    if len(logits) < len(parts):
        return None, 1.0

    def combined(logits_PMK: Tensor) -> Tensor:
        if combine == "average":
            return logits_PMK.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(parts))
        return logits_PMK.mean(dim=0)

    together, labels = torch.stack(logits), found[0].labels
    temperature = fit_temperature(together, labels, combined, parts[0].class_weights)
    return HeldOutLogits(labels, found[0].places, combined(together / temperature).float()), temperature


def _score(parts: Sequence[Probe], held_out: HeldOutLogits | None) -> float | None:
    """Accuracy of the combined logits on held-out features; where these are too many to be kept, of the probe that reads most cuts."""
    if held_out is None:
        return parts[-1].score
    return float((held_out.logits.argmax(dim=1) == held_out.labels).double().mean())


def _linear(head: LinearHead | PooledHead) -> nn.Linear:
    return head if isinstance(head, LinearHead) else head.linear


def _filled(head: LinearHead | PooledHead, weight: Tensor, bias: Tensor) -> LinearHead | PooledHead:
    linear = _linear(head)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return head


def fit_head(
    probing: LayerProbes,
    features: Features,
    views: Sequence[Features],
    cuts: Sequence[str],
    combine: Combine = "concat",
    class_weights: ClassWeights | None = None,
) -> HeadProbe:
    """Fit the probes of a head on the features of its cuts; of several kinds, the one of the best accuracy on held-out features.

    Args:
        probing: kinds and L2 penalties to try.
        features: at these cuts, in the plain view.
        views: likewise, in augmented views.
        cuts: names of layers, the lowest first.
        combine: see `LinearProbeHead`.
        class_weights: see `fit_probe`.
    """
    l2 = [float(value) for value in probing.l2 or L2_PENALTIES]

    def of_kind(kind: str) -> HeadProbe:
        groups = groups_of(cuts, combine)
        options: dict[str, Any] = {"kind": kind, "l2": l2, "seed": probing.seed, "class_weights": class_weights}
        fitted = [fit_probe(features, cut=group, views=views, **options) for group in groups]
        parts = [_with_logits(part, features, views, probing.seed) for part in fitted] if _lacks_logits(fitted) else fitted
        held_out, temperature = _held_out_logits(parts, combine)
        without = [replace(part, held_out=None) for part in parts]  # those of the head are enough
        number = max((len(part.held_out.labels) for part in fitted if part.held_out), default=0)
        return HeadProbe(without, combine, len(views), _score(parts, held_out), number, held_out, temperature, class_weights)

    return best_of([of_kind(kind) for kind in PROBE_KINDS if kind in probing.kinds])


def _lacks_logits(parts: Sequence[Probe]) -> bool:
    """Whether the held-out logits at all L2 penalties were too many to be kept, but those at the chosen ones are not."""
    held_out = [part.held_out for part in parts if part.held_out is not None]
    return any(own.logits is None for own in held_out) and keeps_logits(len(parts), len(held_out[0].labels), len(parts[0].bias))


def _with_logits(part: Probe, features: Features, views: Sequence[Features], seed: int) -> Probe:
    """The probe with the held-out logits at its L2 penalty, from a second cross-validation in the same folds."""
    vectors, labels = vectors_and_labels(features, None, part.cuts, views=len(views))
    augmented = [vectors_and_labels(view, labels, part.cuts)[0].to(vectors) for view in views]
    examples = LabelledVectors(vectors, labels, augmented, part.widths, features.groups)
    kind = PROBE_KINDS[part.kind].with_weights(part.class_weights)
    return replace(part, held_out=held_out_results(examples, None, len(part.bias), [part.l2], kind, seed)[1])


def groups_of(cuts: Sequence[str], combine: Combine) -> list[tuple[str, ...]]:
    """The cuts that each probe of a head reads.

    >>> groups_of(["layer3", "layer4"], "blend")
    [('layer4',), ('layer3', 'layer4')]
    """
    if combine == "average":
        return [(cut,) for cut in cuts]
    return [(cuts[-1],), tuple(cuts)] if combine == "blend" and len(cuts) > 1 else [tuple(cuts)]
