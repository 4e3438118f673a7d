"""The features that a head is fitted on, of any data module of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer

from ftlit.data.dataset import Split
from ftlit.features.extract import Features
from ftlit.features.spec import FeatureSpec
from ftlit.features.stage_input import the_backbone
from ftlit.features.store import Store
from ftlit.files import temporary_folder
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.features.extraction import Extraction
from ftlit.lit.features.extraction_pass import EVALUATION, View
from ftlit.lit.features.feature_data import FeatureData
from ftlit.lit.rank_store import meet
from ftlit.lit.trainer_internals import datamodule_of


@contextmanager
def features_for_head(
    trainer: Trainer, images: IndexedImages, cuts: Sequence[str], splits: Sequence[Split], views: int
) -> Iterator[list[list[Features]]]:
    """Yield the features of each split at these cuts, in the plain view and in each augmented one, from the store or a temporary folder."""
    data = datamodule_of(trainer)
    backbone = the_backbone(trainer.lightning_module)[1]
    specs = [FeatureSpec(cut, "average") for cut in cuts]
    with temporary_folder() as own_folder:
        extraction = data.extraction if isinstance(data, FeatureData) else None
        extraction = extraction or Extraction(images, Store(trainer.strategy.broadcast(own_folder)), dtype=None, seed=0)
        if extraction.data is not images:
            extraction = Extraction(images, extraction.store, dtype=extraction.dtype, seed=extraction.seed)
        numbers = [EVALUATION, *range(1, 1 + views)]
        wanted = {split: [View(split, number) for number in numbers] for split in splits}
        rows = extraction.rows(trainer, backbone, {view: specs for of_split in wanted.values() for view in of_split}, None)
        yield [
            [
                Features(
                    {spec.cut: rows[view][spec] for spec in specs}, images.collection.targets(split), images.collection.splits[split].groups
                )
                for view in wanted[split]
            ]
            for split in splits
        ]
        meet(trainer)
