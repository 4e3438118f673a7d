"""Check and read the inputs of a linear probe: vectors and class numbers."""

import math
import os
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.features.extract import Features
from ftlit.formatting import count, sizes_in_words
from ftlit.probes.cross_validation import LabelledVectors

COPIES = 8  # of the features and of the outputs that the solver holds at a time


def cuts_of(features: Features | Tensor, cut: str | Sequence[str] | None) -> tuple[str, ...]:
    """The cuts that a probe reads; none of features that are not stored. Raises `UserError` where it has to be chosen."""
    if isinstance(features, Features) and cut is None and len(features.cuts) > 1:
        raise UserError(f"these features are from several cuts: give cut=..., one or more of {', '.join(features.cuts)}")
    chosen = features.cuts if isinstance(features, Features) and cut is None else cut
    cuts = (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
    if cut is not None and not cuts:
        raise UserError("cut=[]: give the name of at least one cut, or leave cut out")
    if twice := [name for name, times in Counter(cuts).items() if times > 1]:
        raise UserError(f"cut={list(cuts)} names {twice[0]!r} more than once: give the name of each cut once")
    if len(cuts) > 1 and not isinstance(features, Features):
        raise UserError(
            f"cut={list(cuts)} needs the Features that extract_features returns, but features is a tensor: leave cut out, or give Features"
        )
    return tuple(name for name in features.cuts if name in cuts) if len(cuts) > 1 and isinstance(features, Features) else cuts


def vectors_and_labels(
    features: Features | Tensor | None, targets: Tensor | None, cuts: Sequence[str], *, views: int = 0
) -> tuple[Tensor, Tensor]:
    """Vectors (N, C), at least float32, and class numbers (N,) on the same device. Raises `UserError` for anything else.

    Args:
        features: vectors, or stored features.
        targets: class numbers; `None`: those of the stored features.
        cuts: of the stored features, concatenated; none: their first.
        views: number of further vectors of each example that will be in memory too.
    """
    if isinstance(features, Features):
        rows = [features[cut] for cut in cuts or features.cuts[:1]]
        targets = features.targets if targets is None else targets
        outputs = int(targets.max()) + 1 if isinstance(targets, Tensor) and len(targets) else 0
        width = sum(math.prod(part.shape) for part in rows)
        _check_memory((1 + views) * len(features), max(4, rows[0].dtype.itemsize) * (width + outputs))
        parts = [part.read(range(len(part))) for part in rows]
        features = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if not isinstance(features, Tensor):
        raise UserError(f"a probe needs a torch tensor of vectors (N, C), not {type(features).__name__}: give torch.as_tensor(features)")
    if features.ndim != 2:
        shape = tuple(features.shape)
        raise UserError(f"a probe needs float vectors (N, C), not features of shape {shape}: pool each feature to a vector")
    if not features.is_floating_point():
        raise UserError(f"a probe needs float vectors, not {features.dtype}: give features.float()")
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        given = targets.dtype if isinstance(targets, Tensor) else "missing" if targets is None else f"a {type(targets).__name__}"
        raise UserError(f"targets are {given}: give an integer tensor of shape ({len(features)},), a class number for each vector")
    if targets.shape != features.shape[:1]:
        raise UserError(
            f"targets have the shape {tuple(targets.shape)}, but there are {count(len(features), 'feature vector')}: "
            f"give the shape ({len(features)},), one class number for each feature vector"
        )
    return features if features.dtype == torch.float64 else features.float(), targets.to(features.device, torch.int64)


def read_examples(
    features: Features | Tensor,
    targets: Tensor | None,
    cuts: Sequence[str],
    views: Sequence[Features | Tensor],
    widths: Sequence[int] | None,
    num_classes: int | None,
) -> tuple[LabelledVectors, int]:
    """The examples that a probe is fitted on, and the number of classes; see `fit_probe` for the arguments.

    Raises:
        UserError: views of another shape than the vectors; see also `vectors_and_labels` and `check_classes`.
    """
    vectors, labels = vectors_and_labels(features, targets, cuts, views=len(views))
    augmented = [vectors_and_labels(view, labels, cuts)[0].to(vectors) for view in views]
    if other := next((tuple(view.shape) for view in augmented if view.shape != vectors.shape), None):
        lacking = f"{len(vectors)} rows, one for each image" if other[0] != len(vectors) else f"rows of length {vectors.shape[1]}"
        raise UserError(f"views has a tensor of shape {other}, but features has {tuple(vectors.shape)}: give views with {lacking}")
    classes = check_classes(vectors, labels, num_classes)
    for view in augmented:
        check_classes(view, labels, classes)
    widths = _widths_of(features, cuts, vectors.shape[1]) if widths is None else widths
    return LabelledVectors(vectors, labels, augmented, widths, features.groups if isinstance(features, Features) else None), classes


def check_classes(vectors: Tensor, labels: Tensor, num_classes: int | None, *, every_class: bool = True) -> int:
    """The number of classes. Raises `UserError` where a probe cannot be fitted."""
    if not len(labels):
        raise UserError("there are no features: give at least one feature vector of each class")
    if not bool(vectors.isfinite().all()):
        bad = (~vectors.isfinite()).any(dim=1).nonzero()[:, 0]
        if len(bad) == len(vectors):
            raise UserError("all features have NaN or infinite values: check the weights of the backbone, and the dtype of the features")
        first = int(bad[0])
        raise UserError(
            f"features have NaN or infinite values, first in row {first}: check the image of this row, and the dtype of the features"
        )
    least, most = int(labels.min()), int(labels.max())
    classes = most + 1 if num_classes is None else num_classes
    if least < 0 or most >= classes:
        allowed = "of 0 or more" if num_classes is None else f"from 0 to {classes - 1}"
        raise UserError(f"the targets go from {least} to {most}: give class numbers {allowed}")
    if classes < 2:
        raise UserError("all targets are 0: give at least two classes")
    present = torch.bincount(labels, minlength=classes)
    if every_class and not bool(present.all()):
        lacking = present.eq(0).nonzero()[:, 0].tolist()
        raise UserError(
            f"no feature vector has the class number {lacking[0]}, but there are {classes} classes, numbered from 0: give at least one "
            "vector of each"
        )
    return classes


def _check_memory(rows: int, row_bytes: int) -> None:
    needed, held = COPIES * rows * row_bytes, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > held:
        size, memory = sizes_in_words(needed, held)
        raise UserError(
            f"fitting a linear probe on {rows:,} features needs {size} of memory, but this machine has {memory}: "
            f"use fewer images (data.per_class=...), or a layer with fewer features "
            "(backbone.cut=... or probe.cuts=...)"
        )


def _widths_of(features: Features | Tensor, cuts: Sequence[str], width: int) -> list[int]:
    """Length of the features at each cut."""
    return [math.prod(features[cut].shape) for cut in cuts] if isinstance(features, Features) else [width]


def valid_examples(
    valid: tuple[Tensor, Tensor] | Features, cuts: Sequence[str], examples: LabelledVectors, classes: int
) -> LabelledVectors:
    """Vectors and labels of `valid`, checked against those that the probe is fitted on.

    Raises:
        UserError: features of another length; see also `check_classes`.
    """
    found = vectors_and_labels(*valid, cuts) if isinstance(valid, tuple) else vectors_and_labels(valid, None, cuts)
    if found[0].shape[1] != examples.vectors.shape[1]:
        raise UserError(
            f"`valid` has features of length {found[0].shape[1]}, but the others have length {examples.vectors.shape[1]}: give both "
            "from one cut"
        )
    others = LabelledVectors(found[0].to(examples.vectors), found[1].to(examples.labels))
    check_classes(others.vectors, others.labels, classes, every_class=False)
    return others
