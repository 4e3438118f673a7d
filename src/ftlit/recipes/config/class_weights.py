"""`loss.class_weights` of a config: by class number, and in words."""

from collections.abc import Iterator, Sequence
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, ListConfig

from ftlit.errors import UserError
from ftlit.finetuning.losses import ClassWeights, cross_entropy, describe_weights, weights_by_name, weights_of_classes


def class_weights_of(cfg: DictConfig, data: Any) -> ClassWeights | None:
    """The weights of the classes in the built-in loss; `None`: none, or a custom loss, which has options of its own.

    Raises:
        UserError: an unknown or a missing class, or a weight that is not a number above 0.
    """
    given = cfg.loss.get("class_weights")
    if given is None or resolve_name(cfg.loss._target_) is not cross_entropy:
        return None
    try:
        weights: Any = weights_by_name(given, data.class_names) if isinstance(given, DictConfig) else given
        weights = list(weights) if isinstance(weights, ListConfig) else weights
        weights_of_classes(_counts(data, ["train"]), weights)
    except UserError as error:
        raise UserError(f"loss.{error}") from None
    return weights  # type: ignore[no-any-return]


def trained_classes(data: Any, splits: Sequence[str], weights: ClassWeights | None) -> dict[str, Any]:
    """What a checkpoint records of classes, see `record_of`: the number of images in these splits, and the weights."""
    if data.multilabel:
        return {"train_counts": None, "class_weights": None}
    counts = _counts(data, splits)
    return {"train_counts": [*counts], "class_weights": None if weights is None else weights_of_classes(counts, weights)}


def class_weights_text(cfg: DictConfig, data: Any) -> Iterator[str]:
    """The weights of the classes in words, if there are any."""
    if (weights := class_weights_of(cfg, data)) is not None:
        text = describe_weights(weights_of_classes(_counts(data, ["train"]), weights))
        yield text.replace("weights", "weights balanced,", 1) if weights == "balanced" else text


def _counts(data: Any, splits: Sequence[str]) -> list[int]:
    return [sum(of_class) for of_class in zip(*(data.counts[split].values() for split in splits), strict=True)]
