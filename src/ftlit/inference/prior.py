"""Class frequencies: those that a network was trained for, and the adjustment of its logits to others."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from ftlit.errors import UserError, shorten, unknown

BALANCED, TRAIN = "balanced", "train"
FORMS = f"give {BALANCED}, {TRAIN}, or a share for each class, such as cat=0.9,dog=0.1"
NO_SETS = (
    "coverage and prior are given together, but prediction sets reach their coverage only at the class frequencies of the training data, "
    "which a prior changes: leave one of the two out"
)
SUM_TOLERANCE = 1e-6  # of shares that sum to 1
SAME = 1e-6  # difference of logits below which two priors are equal

Prior = str | Mapping[str, float]  # `balanced`, `train`, or class name -> share


@dataclass(frozen=True)
class TrainedClasses:
    """What a checkpoint records of the training images of each class.

    Args:
        counts: number of training images of each class.
        weights: of each class in the loss; empty: none.
    """

    counts: Sequence[float]
    weights: Sequence[float] = field(default=())

    @property
    def prior(self) -> Tensor:
        """The class frequencies that the network was trained for, (K,) float64: an image of weight 2 counts as two images."""
        counts = torch.tensor(self.counts, dtype=torch.float64)
        seen = counts * torch.tensor(self.weights, dtype=torch.float64) if len(self.weights) else counts
        return seen / seen.sum()


def parse_prior(text: str) -> Prior:
    """The value of `--prior`. Names may hold commas and equals signs. Raises `UserError` for another form.

    >>> parse_prior("balanced"), parse_prior("cat=0.9,dog=0.1")
    ('balanced', {'cat': 0.9, 'dog': 0.1})
    """
    if "=" not in text:
        if text not in (BALANCED, TRAIN):
            raise UserError(f"prior {text!r} is not valid: {FORMS}")
        return text
    found = re.findall(r"(.+?)=([^,=]*)(?:,|$)", text, re.DOTALL)
    shares: dict[str, float] = {}
    for name, share in found:
        if name in shares:
            raise UserError(f"prior has class {name!r} twice: give one share for each class")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"prior has {name}={share}, which is not a number: {FORMS}") from None
    return shares


def shares_of(prior: Prior, class_names: Sequence[str], trained: TrainedClasses) -> Tensor:
    """The share of each class, (K,) float64, which sum to 1.

    Raises:
        UserError: an unknown or missing class, a share that is negative or not finite, or shares that are all 0.
    """
    if isinstance(prior, str):
        if prior not in (BALANCED, TRAIN):
            raise UserError(f"prior {prior!r} is not valid: {FORMS}")
        counts = [1] * len(class_names) if prior == BALANCED else trained.counts
        return TrainedClasses(counts).prior
    for name in prior:
        if name not in class_names:
            raise unknown("class", name, class_names)
    if missing := [name for name in class_names if name not in prior]:
        raise UserError(f"prior has no share for {shorten(missing)}: give a share for each class, 0 for a class that does not occur")
    if wrong := [f"{name}={share}" for name, share in prior.items() if not (isfinite(share) and share >= 0)]:
        raise UserError(f"prior has {wrong[0]}: give shares from 0 to 1")
    if not sum(prior.values()):
        raise UserError("prior has only shares of 0: give a share above 0 for at least one class")
    return TrainedClasses([prior[name] for name in class_names]).prior


def logit_adjustment(prior: Prior, class_names: Sequence[str], trained: TrainedClasses | None, *, multilabel: bool) -> Tensor | None:
    """What is added to the logits so that their softmax holds for another class frequency: log(new prior) - log(prior of training), (K,)
    float64; `None` where the two are equal.

    Only the frequencies may differ: images of one class must look as in training (Saerens et al. 2002; the logit
    adjustment of Menon et al. 2021).

    Raises:
        UserError: several labels per image, a checkpoint without class frequencies, a class without training images; see `shares_of`.
    """
    if multilabel:
        raise UserError("a prior needs one label per image, but images of this run may have several: leave prior out")
    if trained is None:
        raise UserError(
            "this checkpoint does not record the class frequencies of its training images (an earlier version of ftlit wrote it): "
            "leave prior out, or train again"
        )
    new = shares_of(prior, class_names, trained)
    if lacking := [name for name, count in zip(class_names, trained.counts, strict=True) if not count]:
        raise UserError(f"a prior needs training images of each class, but {shorten(lacking)} had none: leave prior out")
    adjustment = new.log() - trained.prior.log()
    return None if float(adjustment.abs().max()) < SAME else adjustment


def sum_notes(prior: Prior | None) -> Iterator[str]:
    """A line where shares do not sum to 1.

    >>> list(sum_notes({"cat": 9, "dog": 1}))
    ['the shares of --prior sum to 10, so each is divided by it']
    """
    total = sum(prior.values()) if isinstance(prior, Mapping) else 1.0
    if abs(total - 1) > SUM_TOLERANCE:
        yield f"the shares of --prior sum to {total:g}, so each is divided by it"
