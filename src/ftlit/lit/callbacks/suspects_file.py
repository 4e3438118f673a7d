"""SuspectsFile: write `suspects.csv`, the training examples whose held-out predictions contradict their label."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from ftlit.data.dataset import Examples
from ftlit.lit.callbacks.probe_head import FitProbeHead
from ftlit.lit.callbacks.recorder import items_of
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.trainer_internals import datamodule_of
from ftlit.probes.fitted_head.suspects import Suspect, suspects_of
from ftlit.report.contents import SuspectRow
from ftlit.report.run_files import SUSPECTS, write_suspects

MAX_SUSPECTS = 500  # in the file


class SuspectsFile(Callback):
    """Writes `suspects.csv` once the head is fitted, and prints how many training examples are possibly mislabelled.

    Examples of val are not in it: they are not held out in the cross-validation. A resumed run whose head is that of its checkpoint keeps
    the file of its first part.

    Args:
        folder: folder of the run.
        fitted: the callback that fits the head, earlier in the list of callbacks.
    """

    def __init__(self, folder: str | Path, fitted: FitProbeHead) -> None:
        self.folder, self.fitted = Path(folder), fitted

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, in the first process."""
        probe = self.fitted.probe
        if not trainer.is_global_zero or probe is None or (held_out := probe.held_out_logits) is None:
            return
        data = datamodule_of(trainer)
        read, _, _ = self.fitted.reads(trainer, data)
        whole = data.images if isinstance(data, FeatureData) else data
        suspects, names = suspects_of(held_out, probe.parts[0].class_weights), read.class_names
        rows = rows_of(suspects[:MAX_SUSPECTS], read.collection.splits["train"], whole.collection.splits["train"], names)
        write_suspects(self.folder, rows)
        found = f"{len(suspects):,} of {len(held_out.labels):,}" if suspects else f"none of {len(held_out.labels):,}"
        are = "is" if len(suspects) < 2 else "are"
        text = f"{found} training {read.input_spec.noun} {are} possibly mislabelled"
        which = f", the {len(rows)} least probable are listed" if len(rows) < len(suspects) else ""
        print(f"{text}{which}: {self.folder / SUSPECTS}" if suspects else text, flush=True)


def rows_of(suspects: list[Suspect], read: Examples, whole: Examples, class_names: list[str]) -> list[SuspectRow]:
    """The rows of the file.

    Args:
        suspects: their places are those among `read`.
        read: the examples that the head was fitted on, in their order.
        whole: the training split, which holds them.
        class_names: class number -> name.
    """
    places_in_whole = _places(read, whole)
    places = [places_in_whole[own.place] for own in suspects]
    return [
        SuspectRow(item, class_names[own.label], class_names[own.suggested], own.probability, own.suggested_probability, place)
        for own, place, item in zip(suspects, places, items_of(whole, places), strict=True)
    ]


def _places(read: Examples, whole: Examples) -> Sequence[int]:
    """The place in `whole` of each example of `read`. Of several with equal sources, such as equal texts, each has one of its own label."""
    if len(read) == len(whole):
        return range(len(read))
    found: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for place in reversed(range(len(whole))):
        found.setdefault((str(whole.sources[place]), whole.labels[place]), []).append(place)
    return [found[str(source), label].pop() for source, label in zip(read.sources, read.labels, strict=True)]
