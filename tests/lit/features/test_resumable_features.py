"""FeatureData of ResumableData: stored features by item (invariant 8), in an order that is resumed exactly at any step (invariant 5)."""

import lightning.pytorch as pl
import pytest
import torch
from feature_runs import QUIET, Stop
from test_loader_features import IMAGES, Augmented, Numbered, Owner

from ftlit import FeatureData, LastCheckpoint, ResumableData, Schedule, SeedEachStep, Stage, StagedFinetuning, UserError

pytestmark = pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers", "ignore:Checkpoint directory")
EPOCHS = 3
STAGES = {
    "frozen": [Stage(["head"])],
    "trains, then frozen again": [Stage(["head"]), Stage(["*"], step=7), Stage(["head"], epoch=2)],
}


class Given(Owner):
    """Keeps the inputs of each step, as the encoder passes them to the head, with the images' numbers."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.inputs += zip(batch[2].tolist(), self.encoder(batch[0]), strict=True)
        return super().training_step(batch, batch_idx)


def data(train=None, **options):
    return ResumableData(train or Numbered(), Numbered(), batch_size=4, seed=1, **options)


def fit(source, folder, stages="frozen", *, fails_at=None, resume=False):
    last = folder / "last.ckpt"
    callbacks = [StagedFinetuning(Schedule(STAGES[stages])), LastCheckpoint(last, every_n_steps=1), SeedEachStep(3), Stop(fails_at)]
    trainer = pl.Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
    trainer.fit(module := Given(), datamodule=source, ckpt_path=last if resume else None)
    return module, trainer


def test_features_are_those_of_direct_passes_in_the_order_of_the_images(tmp_path):
    live, _ = fit(data(), tmp_path)
    stored, trainer = fit(FeatureData(data(), tmp_path / "store", cut="encoder"), tmp_path)
    assert set(stored.batches) == {"FeatureBatch"} and stored.seen == live.seen != sorted(live.seen)
    assert trainer.callback_metrics["val"].isfinite()
    with torch.inference_mode():
        direct = stored.encoder.eval()(IMAGES)
    assert all(torch.allclose(features, direct[number], atol=1e-5) for number, features in stored.inputs)
    assert all(torch.allclose(value, stored.state_dict()[name], atol=1e-5) for name, value in live.state_dict().items())


def test_items_are_read_once_and_a_further_run_computes_nothing(tmp_path, capsys):
    for cached in (1, 2):  # of train and val, which have the same images here
        fit(FeatureData(data(train := Numbered()), tmp_path / "store", cut="encoder"), tmp_path)
        assert capsys.readouterr().out.count("all read from the cache") == cached and train.read < EPOCHS * len(train)


@pytest.mark.parametrize(("stages", "steps"), [("frozen", [0, 4, 5, 13]), ("trains, then frozen again", [3, 8, 11])])
def test_training_killed_in_any_step_goes_on_with_the_same_items_and_ends_with_the_same_bits(tmp_path, stages, steps):
    def source():
        return FeatureData(data(), tmp_path / "store", cut="encoder")

    whole, _ = fit(source(), tmp_path, stages)
    for step in steps:
        with pytest.raises(InterruptedError):
            fit(source(), tmp_path, stages, fails_at=step)
        resumed, _ = fit(source(), tmp_path, stages, resume=True)
        assert resumed.seen == whole.seen[4 * step :], step
        assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items()), step


@pytest.mark.parametrize("begins_with_features", [False, True])
def test_training_begun_without_stored_features_goes_on_with_them_at_the_same_item_and_the_reverse(tmp_path, begins_with_features):
    def source(stored):
        return FeatureData(data(), tmp_path / "store", cut="encoder") if stored else data()

    whole, _ = fit(source(begins_with_features), tmp_path)
    with pytest.raises(InterruptedError):
        fit(source(begins_with_features), tmp_path, fails_at=7)
    resumed, _ = fit(source(not begins_with_features), tmp_path, resume=True)
    assert resumed.seen == whole.seen[4 * 7 :]
    assert all(torch.allclose(value, resumed.state_dict()[name], atol=1e-5) for name, value in whole.state_dict().items())


def test_random_items_are_refused_although_each_epoch_seeds_them(tmp_path):
    with pytest.raises(UserError, match=r"^the train loader of ResumableData gives different images each time"):
        fit(FeatureData(data(Augmented()), tmp_path / "store", cut="encoder"), tmp_path)


def test_worker_processes_read_the_items_once(tmp_path):
    stored, _ = fit(FeatureData(data(num_workers=1), tmp_path / "store", cut="encoder"), tmp_path)
    assert sorted(stored.seen) == sorted([*range(20)] * EPOCHS)
