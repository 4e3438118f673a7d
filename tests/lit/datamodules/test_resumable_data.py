"""ResumableData: any data set is resumed exactly at any step, with and without workers, in one process and in several (invariant 5)."""

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning_net import QUIET
from torch.utils.data import Dataset, DistributedSampler

from ftlit import LastCheckpoint, ResumableData, UserError
from ftlit.data.samplers import EpochOrder
from ftlit.lit.datamodules import epoch_position, resumable_data

pytestmark = pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers", "ignore:Checkpoint directory")
EPOCHS, BATCHES = 3, 4


class Noisy(Dataset):
    """Its number of each example, and a random number, as of an augmentation."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return index, torch.rand(())


class Seen(pl.LightningModule):
    """Keeps the batches of each step, and fails before one of them."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.weight, self.seen, self.fails_at = torch.nn.Parameter(torch.zeros(())), [], fails_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise RuntimeError("killed")
        indices, noise = batch
        self.seen.append((self.current_epoch, indices.tolist(), noise.tolist()))
        return self.weight * noise.sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(("val", batch[0].tolist()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(path, epochs=EPOCHS, fails_at=None, ckpt_path=None, val=None, seed=1, **options):
    callbacks = [LastCheckpoint(path, every_n_steps=1)]
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=callbacks, num_sanity_val_steps=0, **QUIET)
    trainer.fit(model := Seen(fails_at), ResumableData(Noisy(), val, batch_size=3, seed=seed, **options), ckpt_path=ckpt_path)
    return model.seen, model.weight.item()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole") / "last.ckpt")


def test_each_epoch_has_every_example_once_in_another_order_with_other_random_numbers(whole):
    seen, _ = whole
    orders = [[index for epoch, indices, _ in seen if epoch == e for index in indices] for e in range(EPOCHS)]
    noise = {number for *_, numbers in seen for number in numbers}
    assert all(sorted(order) == list(range(11)) for order in orders) and len({*map(tuple, orders)}) == EPOCHS
    assert len(noise) == 11 * EPOCHS


@pytest.mark.parametrize(("step", "workers"), [*((step, 0) for step in range(EPOCHS * BATCHES)), (4, 1), (6, 1)])
def test_training_killed_in_any_step_goes_on_with_the_same_examples_and_ends_with_the_same_bits(whole, tmp_path, step, workers):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "last.ckpt", fails_at=step)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*your dataloader is not resumable")
        seen, weight = train(tmp_path / "last.ckpt", ckpt_path=tmp_path / "last.ckpt", num_workers=workers)
    assert seen == whole[0][step:] and weight == whole[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_that_ended_goes_on_in_further_epochs(whole, tmp_path, workers):
    train(tmp_path / "last.ckpt", epochs=2)
    seen, weight = train(tmp_path / "last.ckpt", ckpt_path=tmp_path / "last.ckpt", num_workers=workers)
    assert seen == whole[0][2 * BATCHES :] and weight == whole[1]


def test_val_is_read_in_order(tmp_path):
    seen, _ = train(tmp_path / "last.ckpt", epochs=1, val=Noisy())
    assert [indices for name, indices in (entry[:2] for entry in seen) if name == "val"] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_share_the_examples_as_distributed_sampler_does(monkeypatch, rank):
    monkeypatch.setattr(resumable_data, "process_share", lambda trainer: (2, rank))
    order = ResumableData(Noisy(), seed=1).train_dataloader().sampler
    expected = DistributedSampler(Noisy(), num_replicas=2, rank=rank, seed=1)
    order.set_epoch(3)
    expected.set_epoch(3)
    assert list(order) == [(3, index) for index in expected] and len(order) == len(expected)


@pytest.mark.parametrize("options", [{"batch_size": 4, "drop_last": True}, {"batch_size": None}])
def test_only_train_leaves_its_last_batch_out_and_an_item_may_be_a_batch(options):
    data = ResumableData(Noisy(), Noisy(), Noisy(), **options)
    loaders = (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    kept = [sum(batch[0].numel() if torch.is_tensor(batch[0]) else 1 for batch in loader()) for loader in loaders]
    assert kept == [8 if options.get("drop_last") else 11, 11, 11]


def test_only_the_epoch_of_the_checkpoint_leaves_examples_out():
    order = EpochOrder(range(8), begin=(1, 5))
    lengths = []
    for epoch in range(3):
        order.set_epoch(epoch)
        lengths.append(len(list(order)))
    assert lengths == [8, 3, 8]


@pytest.mark.parametrize(
    ("train_set", "options", "message"),
    [
        (Noisy(), {"shuffle": True}, "decides the order of the examples itself: leave out shuffle$"),
        (iter([1]), {}, "needs a data set with a length and items by index, not list_iterator$"),
    ],
)
def test_what_it_cannot_serve_is_an_error(train_set, options, message):
    with pytest.raises(UserError, match=message):
        ResumableData(train_set, **options)


def test_other_processes_continue_an_epoch_at_the_same_global_batch_only(monkeypatch):
    """The position of the checkpoint is a number of batches of all processes together."""
    monkeypatch.setattr(epoch_position, "epoch_position", lambda trainer: {"epoch": 1, "batch": 2})

    def data(processes, batch_size):
        monkeypatch.setattr(epoch_position, "process_share", lambda trainer: (processes, 0))
        found = ResumableData(Noisy(), batch_size=batch_size)
        found.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))
        return found

    saved = data(1, 4).state_dict()
    resumed = data(2, 2)
    resumed.load_state_dict(saved)
    assert resumed.begin == (1, 2)
    with pytest.raises(
        UserError, match=r"global batch of 4, .* 2 processes with batch_size=4 have a global batch of 8: give batch_size=2$"
    ):
        data(2, 4).load_state_dict(saved)
    with pytest.raises(
        UserError, match=r"3 processes with batch_size=4 have a global batch of 12: use a number of processes that divides 4; batch_size is"
    ):
        data(3, 4).load_state_dict(saved)
    data(2, 4).load_state_dict({**saved, "batch": 0})  # where an epoch begins
    data(2, 4).load_state_dict({"epoch": 1, "batch": 2})  # of an earlier version


def test_another_seed_is_an_error_where_training_resumes_and_does_not_matter_elsewhere(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "last.ckpt", fails_at=6)
    with pytest.raises(UserError, match=r"^the checkpoint was written with seed=1 of ResumableData, .* has seed=2, .*: give seed=1"):
        train(tmp_path / "last.ckpt", ckpt_path=tmp_path / "last.ckpt", seed=2)
    data = ResumableData(Noisy(), Noisy(), batch_size=5, seed=2)
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.validate(Seen(), data, ckpt_path=tmp_path / "last.ckpt")
    assert data.begin == (0, 0)  # a later fit begins at the beginning
