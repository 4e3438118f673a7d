"""How a run begins with the run of `init_from`: its classes, and the rows of its head."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ftlit.errors import UserError
from ftlit.features.image_hashes import cached_hashes
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.models.backbone import Backbone
from ftlit.recipes.run.artifacts import images_of
from ftlit.recipes.start.class_changes import ClassChanges, match_classes
from ftlit.recipes.start.head_rows import copy_head, copy_rows, same_features
from ftlit.recipes.start.start_run import FOLDER, StartRun


@dataclass(frozen=True)
class RunStart:
    """The run of `init_from`.

    Args:
        run: its network and split.
        changes: of its classes.
        copies_rows: whether the head of the new run begins with its rows of known classes.
    """

    run: StartRun
    changes: ClassChanges
    copies_rows: bool

    @property
    def head(self) -> str:
        """What the head begins with, where it has rows of the run; empty: it is fitted again."""
        if not self.copies_rows:
            return ""
        return f"the head of {self.run.name}" + (", with rows of a linear probe for new classes" if self.changes.new else "")

    def rows(self) -> list[tuple[str, str]]:
        """The row of the plan on the run."""
        head = "its head too" if self.copies_rows else "the head is fitted on features of its backbone"
        text = f"the network of {self.run.name}, {head}; classes: {self.changes.describe()}"
        return [("start", f"{text}; a copy of the run is in the folder {FOLDER} of this one")]


def begin_head(start: StartRun, head: nn.Module, probe_head: FitProbeHead | None, data: Any, backbone: Backbone) -> RunStart:
    """Begin with the head of the run of `init_from`, in place, or after the fit of the new classes.

    Raises:
        UserError: a head of another kind or size, or data without any class of the run.
    """
    if start.network.multilabel != data.multilabel:
        kinds = ["several labels per example" if several else "one label" for several in (start.network.multilabel, data.multilabel)]
        raise UserError(f"init_from={start.name}: the data of that run have {kinds[0]}, but these have {kinds[1]}: leave init_from out")
    names = start.network.class_names
    changes = match_classes(names, data.class_names, start.split, _classes_of(data), start.name)
    before, copies = start.network.head, probe_head is None
    if probe_head is None:
        copy_head(head, before, changes.known, start.name)
    elif probe_head.trains and isinstance(before, nn.Linear) and same_features(before, head, backbone.cuts[-1]):
        probe_head.then, copies = partial(copy_rows, before=before, known=changes.known, aligned=True), True
    return RunStart(start, changes, copies)


def _classes_of(data: Any) -> Mapping[str, tuple[int, ...]]:
    """Hash of each image -> its class numbers; empty where the content of the images is not known."""
    images = images_of(data)
    if images is None or any(examples.contents is None for examples in images.all_images.splits.values()):
        return {}
    splits = images.all_images.splits.values()
    return {image: labels for own in splits for image, labels in zip(map(str, cached_hashes(own)), own.labels, strict=True)}
