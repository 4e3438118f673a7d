"""Conformal prediction sets (Vovk, Gammerman and Shafer 2005): the classes that hold the label with about a given probability.

A set holds the classes whose score, 1 - probability, is at most a quantile of the scores that held-out examples have for their own label.

The probability is that of new examples like those of training, and it is not guaranteed, because the scores are not those of the network
that predicts on examples that it never saw:

- Of a head that is only fitted they come from its cross-validation: the scores of the heads of all folds make one quantile, which is
  applied to the head that is fitted on everything. This is the jackknife with folds instead of single examples. Unlike the jackknife+ and
  CV+ it has no guarantee for a finite number of examples (Barber et al. 2021, "Predictive inference with the jackknife+"). The same
  logits have chosen the L2 penalty and the temperature.
- Those of a trained network come from val, which has chosen the epoch too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Self

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.formats import DamagedFile, JsonObject, upgraded, with_format

KEY = "calibration"  # in a checkpoint, beside the record
MAX_SCORES = 1000  # that are kept


@dataclass(frozen=True)
class Calibration:
    """Scores of held-out examples for their own label.

    Args:
        scores: (n,), in ascending order, each in [0, 1].
    """

    scores: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Self:
        """The calibration with scores (N,) in any order, see `own_scores`. Of more than `MAX_SCORES`, some quantiles are kept."""
        scores = scores.sort().values
        if len(scores) > MAX_SCORES:  # ranks as far apart: a rank among those that are kept is at least the same one among all
            ranks = [ceil((len(scores) + 1) * i / (MAX_SCORES + 1)) for i in range(1, MAX_SCORES + 1)]
            scores = scores[torch.tensor(ranks) - 1]
        return cls(scores)

    def threshold(self, coverage: float) -> float:
        """The largest score of a class in a set: of n scores that of rank ceil((n + 1) coverage), so that a set holds the label of a new
        example with about this probability (at least, if its score and the n scores were exchangeable); infinite where n is too small.
        """
        rank = ceil((len(self.scores) + 1) * coverage - 1e-9)
        return float(self.scores[rank - 1]) if rank <= len(self.scores) else inf

    def record(self) -> JsonObject:
        """Plain values and tensors for a checkpoint."""
        return with_format({"scores": self.scores})


def own_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """The scores of logits (N, K) for their own labels, class numbers (N,): float32 (N,)."""
    return (1 - logits.double().softmax(dim=1).gather(1, labels[:, None])[:, 0]).float().cpu()


def calibration_of(logits: Tensor, labels: Tensor) -> Calibration:
    """The calibration of logits (N, K) of held-out examples with class numbers (N,)."""
    return Calibration.of(own_scores(logits, labels))


def read_calibration(checkpoint: Mapping[str, Any], file: object) -> Calibration | None:
    """The calibration in a checkpoint; `None` where there is none. Raises `UserError` for a damaged one, or one of a newer program."""
    if KEY not in checkpoint:
        return None
    scores = upgraded(checkpoint[KEY], str(file)).get("scores")
    if not isinstance(scores, Tensor) or scores.ndim != 1 or not len(scores) or not bool(((scores >= 0) & (scores <= 1)).all()):
        raise DamagedFile(str(file), "its calibration holds no scores", "restore it from a copy, or train again")
    return Calibration(scores)


def threshold_of(calibration: Calibration | None, coverage: float, *, multilabel: bool) -> float:
    """The largest score of a class in a prediction set of this coverage, see `Calibration.threshold`.

    Raises:
        UserError: a coverage that is not above 0 and below 1, data with several labels, or a checkpoint without held-out scores.
    """
    if not 0 < coverage < 1:
        meant = f": did you mean {coverage / 100:g}?" if 1 < coverage < 100 else ", such as 0.9"
        raise UserError(f"coverage {coverage:g}: give a share above 0 and below 1{meant}")
    if multilabel:
        raise UserError("prediction sets need one label per example, but the data of this run has several: leave --coverage out")
    if calibration is None:
        raise UserError(
            "prediction sets need scores of held-out examples, which this checkpoint lacks: give the folder of a run, or its best.ckpt "
            "(a run has none if it has no val, if probe.l2 has only one value, or if images x classes is above 80 million)"
        )
    return calibration.threshold(coverage)
