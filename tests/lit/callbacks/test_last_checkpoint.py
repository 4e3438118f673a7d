"""LastCheckpoint saves before the first step, by time or steps, and at the end, in all processes at the same steps."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning_net import BATCHES, QUIET, Net, fit
from torch.utils.data import DataLoader, DistributedSampler

from ftlit import LastCheckpoint, UserError
from ftlit.lit.callbacks import exact_resume

pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders and folders
STEPS = 2 * BATCHES


class Clock:
    """A clock that moves by hand."""

    now = 0.0

    def monotonic(self):
        return self.now


def saved(monkeypatch, tmp_path, **settings):
    """The steps before which a checkpoint was written; a step takes a second. `STEPS`: at the end."""
    clock, steps = Clock(), []

    class Recorded(LastCheckpoint):
        def on_before_backward(self, trainer, pl_module, loss):
            clock.now += 1
            super().on_before_backward(trainer, pl_module, loss)

        def _save(self, trainer):
            steps.append(trainer.global_step)
            super()._save(trainer)

    monkeypatch.setattr(exact_resume, "time", clock)
    accumulate = {"accumulate_grad_batches": settings.pop("accumulate")} if "accumulate" in settings else {}
    fit(Recorded(tmp_path / "last.ckpt", **settings), **accumulate)
    return steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, STEPS]),
        ({"every_seconds": 3}, [0, 3, 6, STEPS]),  # also within an epoch, not at its start
        ({"every_seconds": 0}, [*range(STEPS), STEPS]),
        ({"every_n_steps": 4}, [0, 4, STEPS]),
        ({"every_seconds": 3, "every_n_steps": 5}, [0, 3, 5, STEPS]),
        ({"every_seconds": 3, "accumulate": 2}, [0, 2, 4]),
    ],
)
def test_a_checkpoint_is_written_when_it_is_due(monkeypatch, tmp_path, settings, expected):
    assert saved(monkeypatch, tmp_path, **settings) == expected


class Resumable(DataLoader):
    """A loader that stores its own position."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_loader_that_stores_its_own_position_is_refused(tmp_path):
    loader = Resumable(torch.ones(4, 2))
    with pytest.raises(
        UserError, match=r"^LastCheckpoint cannot resume exactly with Resumable, because this loader stores its own position: replace "
    ):
        pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[LastCheckpoint(tmp_path / "last.ckpt")], **QUIET).fit(Net(), loader)


class Orders(pl.LightningModule):
    """Keeps the order of the examples in each epoch."""

    def __init__(self):
        super().__init__()
        self.weight, self.orders = torch.nn.Parameter(torch.zeros(())), {}

    def training_step(self, batch, batch_idx):
        self.orders.setdefault(self.current_epoch, []).extend(batch.tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("sampled", "workers"), [(False, 0), (True, 0), (True, 1)], ids=["shuffle=True", "DistributedSampler", "DistributedSampler, a worker"]
)
def test_a_loader_that_a_resume_would_shuffle_anew_is_a_warning_whose_advice_resumes_exactly(tmp_path, sampled, workers):
    examples = list(range(64))

    def train(epochs, ckpt_path=None):
        sampler = DistributedSampler(examples, num_replicas=1, rank=0, seed=0) if sampled else None
        loader = DataLoader(examples, 8, shuffle=not sampled, sampler=sampler, num_workers=workers)
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[LastCheckpoint(tmp_path / "last.ckpt")], **QUIET)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(model := Orders(), loader, ckpt_path=ckpt_path)
        lines = [str(warning.message) for warning in caught if "LastCheckpoint cannot resume exactly" in str(warning.message)]
        assert len(lines) == (not sampled) and all(
            "RandomSampler" in line and "ResumableData(" in line and "DistributedSampler(" in line for line in lines
        )
        return model.orders

    whole = train(3)
    train(1)
    resumed = train(3, tmp_path / "last.ckpt")
    assert ({epoch: whole[epoch] for epoch in (1, 2)} == resumed) == sampled


@pytest.mark.parametrize("seed", [0, 1])
def test_another_seed_of_the_order_is_an_error_on_resuming(tmp_path, seed):
    def train(epochs, seed, ckpt_path=None):
        loader = DataLoader(range(8), 4, sampler=DistributedSampler(range(8), num_replicas=1, rank=0, seed=seed))
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[LastCheckpoint(tmp_path / "last.ckpt")], **QUIET)
        trainer.fit(model := Orders(), loader, ckpt_path=ckpt_path)
        return model.orders

    train(1, 0)
    if seed == 0:
        assert len(train(2, seed, tmp_path / "last.ckpt")) == 1
        return
    with pytest.raises(UserError, match=r"^the checkpoint was written with DistributedSampler\(seed=0\) .* this run has seed=1, .*seed=0"):
        train(2, seed, tmp_path / "last.ckpt")


def test_the_weights_have_their_usual_names_in_a_file_that_torch_and_lightning_read_without_more(tmp_path):
    _, trained = fit(LastCheckpoint(tmp_path / "last.ckpt"))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == trained.state_dict().keys() and torch.equal(state["weight"], trained.weight)
    assert torch.equal(Net.load_from_checkpoint(tmp_path / "last.ckpt").weight, trained.weight)
