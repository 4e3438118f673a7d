"""The features of a data module's images, by split, view and cut: known from before, stored, or computed now."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import nn

from ftlit.data.dataset import Split
from ftlit.data.transforms import Transform
from ftlit.features.extract import ImageViews
from ftlit.features.fill import evaluating
from ftlit.features.image_hashes import HashCache, image_hashes
from ftlit.features.keys import feature_keys, stored_dtype, view_digest
from ftlit.features.spec import FeatureSpec, ImageHashes
from ftlit.features.store import Store
from ftlit.features.stored_pixels import PIXELS, StoredImages, StoredPixels
from ftlit.features.table import FeatureKey, FeatureTable, Rows
from ftlit.lit.datamodules.indexed_images import IndexedImages
from ftlit.lit.features.extraction_pass import EVALUATION, ExtractionRequest, View, extract_requested
from ftlit.lit.module_internals import version_of
from ftlit.lit.rank_store import TURNS, first_ahead, meet, turn_of
from ftlit.models.backbone import Backbone

VALIDATION = View("val", EVALUATION)
SpecKeys = dict[FeatureSpec, FeatureKey]


class Extraction:
    """The features of `data`'s images by split, view and spec. Rows are kept as long as the weights below them do not change.

    Args:
        data: the images.
        store: of the features.
        dtype: of the stored features; `None`: the dtype of the weights.
        seed: of augmented views.
    """

    def __init__(self, data: IndexedImages, store: Store, *, dtype: str | None, seed: int) -> None:
        self.data, self.store, self.dtype, self.seed = data, store, dtype, seed
        self._tables: dict[str, FeatureTable] = {}  # by digest; shared by all splits, so that no shard is checked twice
        self.forget()

    def forget(self) -> None:
        """Discard what is known: weights and files may have changed."""
        self._hashes: dict[Split, ImageHashes] = {}
        self._keys: dict[tuple[View, FeatureSpec], tuple[object, FeatureKey]] = {}  # with the versions of the weights
        self._rows: dict[tuple[Split, str], Rows] = {}  # by split and digest
        self._known: dict[FeatureSpec, str] = {}  # digest of the evaluation view
        self.pixels: dict[Split, StoredImages] = {}  # stored in place of the images of a split
        self._sealed = False

    def seal(self) -> None:
        """Return only rows that are known by now, whatever happens to the weights: they will be sharded, and none of them train below."""
        self._sealed = True

    def rows(
        self, trainer: Trainer, backbone: Backbone, specs: Mapping[View, Sequence[FeatureSpec]], stage: int | None
    ) -> dict[View, dict[FeatureSpec, Rows]]:
        """Return features, after computing what is missing.

        Args:
            trainer: its processes share the work.
            backbone: with its current weights.
            specs: view -> specs of the features.
            stage: the current stage; in another one the weights may differ. Within a stage the weights are hashed again only if a tensor
                was replaced or changed in place (by `Tensor._version`). `None`: hash them each time.

        Returns:
            View -> spec -> rows.
        """
        keys = {view: self._keys_of_stage(trainer, backbone, view, of_view, stage) for view, of_view in specs.items()}
        new = {view: own for view, own in keys.items() if any((view.split, key.digest) not in self._rows for key in own.values())}
        if new:
            self._hash_images(trainer, list(dict.fromkeys(view.split for view in new)))
            requests = [self._request(view, own) for view, own in new.items()]
            extract_requested(self.store, backbone, requests, trainer, self.data.num_workers)
            for request in requests:
                for spec, table in request.tables.items():
                    self._rows[request.view.split, new[request.view][spec].digest] = Rows(table, request.images.hashes)
        if trainer.state.fn == "fit":
            evaluated = [own for view, own in keys.items() if view.number == EVALUATION]
            self._known |= {spec: key.digest for own in evaluated for spec, key in own.items()}
        return {view: {spec: self._rows[view.split, key.digest] for spec, key in own.items()} for view, own in keys.items()}

    def stored_images(self, trainer: Trainer, backbone: Backbone, splits: Sequence[Split]) -> dict[Split, StoredImages]:
        """Return the pixels of these splits, after storing what is missing. Their views can be stored, see `StoredPixels.of`."""
        if new := [split for split in splits if split not in self.pixels]:
            self._hash_images(trainer, new)
            forms = {split: form for split in new if (form := StoredPixels.of(self.data.transforms[split]))}
            requests = [self._pixel_request(split, form) for split, form in forms.items()]
            extract_requested(self.store, backbone, requests, trainer, self.data.num_workers)
            for request in requests:
                split, rows = request.view.split, Rows(request.tables[PIXELS], request.images.hashes)
                self.pixels[split] = StoredImages.of(request.images.examples, rows, forms[split])
        return {split: self.pixels[split] for split in splits}

    def _pixel_request(self, split: Split, form: StoredPixels) -> ExtractionRequest:
        examples = self.data.collection.splits[split]
        key = form.key(examples.load)
        table = self._tables.setdefault(key.digest, self.store.table(key))
        images = ImageViews(examples, self._hashes[split], form.write)
        return ExtractionRequest(View(split, EVALUATION), images, form.row_bytes // 3, {PIXELS: table})

    def is_known(self, trainer: Trainer, backbone: Backbone, spec: FeatureSpec) -> bool:
        """Whether features in the evaluation view were used in training and still belong to the current weights."""
        if self._sealed:  # nothing to compare: a process has shards only
            return False
        return spec in self._known and self._current_keys(trainer, backbone, VALIDATION, [spec])[spec].digest == self._known[spec]

    def _hash_images(self, trainer: Trainer, splits: Sequence[Split]) -> None:
        """Hash all images. The first process, and then the first of each other machine, reads the files; the others use its cache."""
        hash_cache = HashCache(self.store.folder, trust=self.store.trust)
        missing = [split for split in splits if split not in self._hashes]
        with first_ahead(trainer):
            if trainer.is_global_zero:
                self._hashes |= {split: image_hashes(self.data.collection.splits[split], hash_cache) for split in missing}
        for turn in range(1, TURNS):
            if turn == turn_of(trainer):
                self._hashes |= {split: image_hashes(self.data.collection.splits[split], hash_cache) for split in missing}
            meet(trainer)

    def _request(self, view: View, keys: SpecKeys) -> ExtractionRequest:
        examples, hashes = self.data.collection.splits[view.split], self._hashes[view.split]
        images = ImageViews(examples, hashes, self._transform(view), (self.seed, view.number))
        for key in keys.values():
            self._tables.setdefault(key.digest, self.store.table(key))
        return ExtractionRequest(view, images, self.data.input_spec.pixels, {spec: self._tables[key.digest] for spec, key in keys.items()})

    def _transform(self, view: View) -> Transform:
        return self.data.transforms["val" if view.number == EVALUATION else "train"]

    def _keys_of_stage(self, trainer: Trainer, backbone: Backbone, view: View, specs: Sequence[FeatureSpec], stage: int | None) -> SpecKeys:
        if self._sealed:
            return {spec: self._keys[view, spec][1] for spec in specs}
        versions = {spec: (stage, *_versions(backbone.upto(spec.cut))) for spec in specs}
        if stage is None or any((view, spec) not in self._keys or self._keys[view, spec][0] != versions[spec] for spec in specs):
            current = self._current_keys(trainer, backbone, view, specs)
            self._keys |= {(view, spec): (versions[spec], key) for spec, key in current.items()}
        return {spec: self._keys[view, spec][1] for spec in specs}

    def _current_keys(self, trainer: Trainer, backbone: Backbone, view: View, specs: Sequence[FeatureSpec]) -> SpecKeys:
        """Return the keys of a view's features with the current weights."""
        size = self.data.input_spec.shape
        seed = None if view.number == EVALUATION else (self.seed, view.number)
        with trainer.precision_plugin.forward_context():
            return feature_keys(
                backbone,
                specs,
                view=view_digest(self._transform(view), self.data.collection.splits[view.split].load, seed),
                size=size,
                dtype=stored_dtype(self.dtype, next(backbone.parameters(), torch.empty(0)).dtype),
                about={
                    "view": f"augmented {view.number}" if view.number else "evaluation",
                    "input": "x".join(map(str, size[-2:])),
                },
            )


def evaluation_features(
    trainer: Trainer, store: Store, backbone: Backbone, data: IndexedImages, specs: Sequence[FeatureSpec], splits: Sequence[Split]
) -> dict[Split, dict[FeatureSpec, Rows]]:
    """Return the features of each split in the evaluation view, outside of training.

    The backbone moves to the trainer's device, in its precision, with channels last: on a CPU convolutions are then about twice as fast.
    """
    backbone.to(trainer.strategy.root_device)
    backbone.to(memory_format=torch.channels_last)
    trainer.precision_plugin.convert_module(backbone)
    with evaluating(backbone):
        views = {split: View(split, EVALUATION) for split in splits}
        rows = Extraction(data, store, dtype=None, seed=0).rows(trainer, backbone, {view: specs for view in views.values()}, None)
    return {split: rows[view] for split, view in views.items()}


def _versions(module: nn.Module) -> Iterator[object]:
    """Identity and version counter of each tensor, to detect changes."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor.data_ptr(), version_of(tensor)
