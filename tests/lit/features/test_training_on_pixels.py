"""Training on stored pixels: evaluation views give the weights of training on images, to the bit; crops resume to the bit."""

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
from feature_runs import ALL, HEAD, QUIET, SCHEDULES, Stop, data, distance, fit, gradient_image, model
from PIL import Image

from ftlit import FeatureData, InputSpec, Schedule, Stage, StagedFinetuning, UserError
from ftlit.data.dataset import Collection, Examples
from ftlit.data.images import image_reader
from ftlit.lit.callbacks.exact_resume import LastCheckpoint
from ftlit.lit.callbacks.seed_each_step import SeedEachStep
from ftlit.lit.datamodules.image_data import ImageData

OPENED: list[str] = []


def counted(path) -> Image.Image:
    OPENED.append(str(path))
    return image_reader(InputSpec(size=12))(path)


@pytest.fixture
def photos(tmp_path):
    """Make image data of files; `OPENED` lists those that are decoded."""
    for i in (*range(15), *range(50, 57), *range(60, 65)):
        gradient_image(i).resize((30, 26)).save(tmp_path / f"{i}.png")

    def make(spec=InputSpec(size=12), **options) -> ImageData:  # noqa: B008
        made, paths = data().collection, {}
        for split, one in made.splits.items():
            paths[split] = [tmp_path / f"{i}.png" for i in one.sources]
        splits = {split: Examples(paths[split], one.labels, counted, paths[split]) for split, one in made.splits.items()}
        settings = {"batch_size": 4, "num_workers": 0, "augment": "none", **options}
        OPENED.clear()
        return ImageData(Collection(splits, made.class_names), spec, **settings)

    return make


@pytest.mark.parametrize("name", ["all", "head, then all", "frozen again within an epoch"])
def test_without_augmentation_the_weights_are_those_of_training_on_images_to_the_bit(tmp_path, name):
    images, _, _ = fit(FeatureData(data(), tmp_path, pixels=False), SCHEDULES[name])
    stored, _, passes = fit(FeatureData(data(), tmp_path, pixels=True), SCHEDULES[name])
    assert distance(stored, images) == 0 and "images" in passes.epochs


def test_another_network_of_the_geometry_decodes_no_image(photos, tmp_path):
    fit(FeatureData(photos(augment="photo"), tmp_path / "store"), [Stage(ALL)])
    assert len(OPENED) == 15 + 7  # each image of train and val once in four epochs
    other = InputSpec(size=12, mean=(0.5,) * 3, std=(0.5,) * 3)
    fit(FeatureData(photos(other, augment="photo"), tmp_path / "store"), [Stage(ALL)])
    assert OPENED == []
    fit(FeatureData(photos(augment="photo"), tmp_path / "store"), [Stage(ALL)], max_epochs=1)
    assert len(OPENED) >= 15  # read once only: not worth it


@pytest.mark.parametrize("mix", ["none", "both"])
def test_crops_resume_to_the_bit_and_depend_on_no_worker(photos, tmp_path, mix):
    def run(path, stop=None, resume_from=None, **options):
        module, source = model(), FeatureData(photos(augment="photo", mix=mix, **options), tmp_path / "store", pooled=True, pixels=True)
        stages = StagedFinetuning(Schedule([Stage(HEAD), Stage(ALL, epoch=1)]))
        callbacks = [stages, LastCheckpoint(path, every_n_steps=1), SeedEachStep(3), Stop(stop)]
        trainer = pl.Trainer(max_epochs=3, accelerator="cpu", callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
        with nullcontext() if stop is None else pytest.raises(InterruptedError):
            trainer.fit(module, source, ckpt_path=resume_from, weights_only=False)
        return module

    whole = run(tmp_path / "whole.ckpt", num_workers=int(mix == "none"))
    run(tmp_path / "last.ckpt", stop=6)
    assert distance(run(tmp_path / "last.ckpt", resume_from=tmp_path / "last.ckpt"), whole) == 0


def test_validation_after_the_fit_reads_pixels_and_the_test_reads_images(photos, tmp_path):
    source = FeatureData(photos(augment="photo"), tmp_path / "store")
    module, trainer, _ = fit(source, [Stage(ALL)])
    OPENED.clear()
    found = trainer.validate(module, source, verbose=False), trainer.test(module, source, verbose=False)
    images = photos(augment="photo")
    expected = trainer.validate(module, images, verbose=False), trainer.test(module, images, verbose=False)
    assert found == expected and len(OPENED) == 7 + 5


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"augment": "trivial_augment"}, True, r"cache.pixels=true supports data.augment=none and data.augment=photo: give one of these"),
        ({}, "maybe", "cache.pixels=maybe is not valid"),
    ],
)
def test_choices_that_cannot_be_met_are_one_line_errors(tmp_path, options, given, message):
    with pytest.raises(UserError, match=message):
        FeatureData(data(**options), tmp_path, pixels=given)
