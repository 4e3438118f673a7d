"""The kinds of linear probes by name: how each is fitted, and the loss that chooses its L2 penalty. Custom kinds register here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from ftlit.probes.objectives import losses_of
from ftlit.probes.solver import RegularizationPath, solve
from ftlit.registry import Registry


@dataclass(frozen=True)
class ProbeKind:
    """A kind of linear probe. K is the number of classes, or 1 for two classes (the second one has a positive output).

    Args:
        fit: standardised features (N, C), class numbers (N,), number of classes, S L2 penalties -> weights (S, K, C) and biases (S, K).
        losses: outputs (N, K), class numbers (N,) -> loss of each sample (N,); its mean on held-out samples chooses the L2 penalty.
        sklearn: the argument of scikit-learn that equals the L2 penalty: `C` (1 / (N L2 penalty)), `alpha` (N L2 penalty), or none.
    """

    fit: Callable[[Tensor, Tensor, int, Sequence[float]], RegularizationPath]
    losses: Callable[[Tensor, Tensor], Tensor]
    sklearn: Literal["C", "alpha"] | None = None


PROBE_KINDS: Registry[ProbeKind] = Registry("kind of probe")

PROBE_KINDS.register("softmax")(ProbeKind(partial(solve, kind="softmax"), partial(losses_of, kind="softmax"), "C"))
PROBE_KINDS.register("svm")(ProbeKind(partial(solve, kind="svm"), partial(losses_of, kind="svm"), "C"))
PROBE_KINDS.register("ridge")(ProbeKind(partial(solve, kind="ridge"), partial(losses_of, kind="ridge"), "alpha"))
