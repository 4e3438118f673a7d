"""The kinds of linear probes by name: how each is fitted, and the loss that chooses its L2 penalty. Custom kinds register here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from ftlit.errors import UserError
from ftlit.probes.objectives import LossName, losses_of
from ftlit.probes.solver import RegularizationPath, solve
from ftlit.registry import Registry

COARSE_TOLERANCE = 10.0  # times that of a result: held-out losses agree in three digits, in two thirds of the time


@dataclass(frozen=True)
class ProbeKind:
    """A kind of linear probe. K is the number of classes, or 1 for two classes (the second one has a positive output).

    Args:
        fit: standardised features (N, C), class numbers (N,), number of classes, S L2 penalties -> weights (S, K, C) and biases (S, K).
        losses: outputs (N, K), class numbers (N,) -> loss of each sample (N,); its mean on held-out samples chooses the L2 penalty.
        sklearn: the argument of scikit-learn that equals the L2 penalty: `C` (1 / (N L2 penalty)), `alpha` (N L2 penalty), or none.
        takes_weights: whether `fit` takes `class_weights=`, see `solve`.
        coarse_fit: like `fit`, to a coarser tolerance, to choose between L2 penalties in cross-validation; it takes `ended=`, see `solve`.
            `None`: `fit`.
    """

    fit: Callable[..., RegularizationPath]
    losses: Callable[[Tensor, Tensor], Tensor]
    sklearn: Literal["C", "alpha"] | None = None
    takes_weights: bool = False
    coarse_fit: Callable[..., RegularizationPath] | None = None

    def with_weights(self, class_weights: Sequence[float] | None) -> "ProbeKind":
        """The kind with these weights of the classes in its fit and in its loss; `None`: none. Raises `UserError` where it takes none."""
        if class_weights is None:
            return self
        if not self.takes_weights:
            raise UserError("this kind of probe does not support class weights: leave class_weights out, or give probe.kinds=[softmax]")

        def losses(outputs: Tensor, labels: Tensor) -> Tensor:
            return outputs.new_tensor(class_weights)[labels] * self.losses(outputs, labels)

        coarse_fit = self.coarse_fit and partial(self.coarse_fit, class_weights=class_weights)
        return replace(self, fit=partial(self.fit, class_weights=class_weights), losses=losses, coarse_fit=coarse_fit)


PROBE_KINDS: Registry[ProbeKind] = Registry("kind of probe")


def _built_in(kind: LossName, sklearn: Literal["C", "alpha"]) -> ProbeKind:
    coarse_fit = None if kind == "ridge" else partial(solve, kind=kind, tolerance_factor=COARSE_TOLERANCE)  # ridge has a closed form
    return ProbeKind(partial(solve, kind=kind), partial(losses_of, kind=kind), sklearn, takes_weights=True, coarse_fit=coarse_fit)


PROBE_KINDS.register("softmax")(_built_in("softmax", "C"))
PROBE_KINDS.register("svm")(_built_in("svm", "C"))
PROBE_KINDS.register("ridge")(_built_in("ridge", "alpha"))
