"""The prediction for one image or text."""

from collections.abc import Mapping
from dataclasses import dataclass

from ftlit.errors import shorten


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image or text.

    Args:
        probabilities: class name -> probability in [0, 1], the highest first. They sum to 1, except for data with several labels.
        unlike: whether the input is unlike those of training, see `ftlit.inference.novelty`; `None` where the checkpoint cannot tell.
    """

    probabilities: Mapping[str, float]
    unlike: bool | None = None

    def __repr__(self) -> str:
        return f"Prediction({shorten((f'{label} {value:.4f}' for label, value in self.probabilities.items()), most=3)})"

    @property
    def label(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """Probability of the most probable class."""
        return self.probabilities[self.label]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable classes and their probabilities; all, if there are fewer."""
        return list(self.probabilities.items())[:k]

    def classes_within(self, threshold: float) -> list[str]:
        """The classes, the most probable first, whose score, 1 - probability, is at most this; see `ftlit.inference.prediction_sets`."""
        return [label for label, value in self.probabilities.items() if 1 - value <= threshold]
