"""Training examples that are possibly mislabelled, from the held-out logits of a fitted head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ftlit.probes.fitted_head.head_probe import HeldOutLogits

MIN_ODDS = 9.0  # of another class against the given one, for an example to be listed; measured by benchmarks/suspects.py


@dataclass(frozen=True)
class Suspect:
    """An example whose label is possibly wrong.

    Args:
        place: of the example among those that the head was fitted on.
        label: its class number.
        suggested: number of the class that is most probable without the example.
        probability: of the label.
        suggested_probability: of the suggested class.
    """

    place: int
    label: int
    suggested: int
    probability: float
    suggested_probability: float


def suspects_of(held_out: HeldOutLogits, class_weights: Sequence[float] | None = None) -> list[Suspect]:
    """Examples of which another class is at least `MIN_ODDS` times as probable as their label, the least probable labels first.

    The probabilities are those of heads that were fitted without the example. The order is by self-confidence, the probability of the
    label: confident learning (Northcutt et al. 2021) also measures a threshold for each class, which did not find more.

    Args:
        held_out: of a head whose logits give probabilities (softmax).
        class_weights: of each class in the loss with which the head was fitted. They multiply the odds of a class by its weight, which is
            undone here: else correct labels of frequent classes, whose weights are small, would be listed.
    """
    logits = held_out.logits.double()
    if class_weights is not None:
        logits = logits - logits.new_tensor(class_weights).log()
    probabilities = logits.softmax(dim=1)
    own = probabilities.gather(1, held_out.labels[:, None])[:, 0]
    best = probabilities.max(dim=1)
    listed = torch.nonzero(best.values >= MIN_ODDS * own)[:, 0]
    rows = sorted(listed.tolist(), key=lambda row: (float(own[row]), int(held_out.places[row])))
    numbers, shares = (held_out.places, held_out.labels, best.indices), (own, best.values)
    return [Suspect(*(int(values[row]) for values in numbers), *(float(values[row]) for values in shares)) for row in rows]
