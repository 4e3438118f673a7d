"""A run that is resumed with another number of processes sees each image of the epoch once, in the order of the run that never stopped."""

import csv
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import warm
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from paths import ROOT, python_path
from test_resume import SENDER

from ftlit import UserError
from ftlit.data.samplers import TrainOrder
from ftlit.recipes.resuming.elastic import InitialProcesses, describe_change, keep_batch, processes_of
from ftlit.recipes.resuming.settings import Change

TRAIN = [
    *(sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.num_workers=0", "report=false", "scenario=large_similar", "head=linear"),
    *("schedule=head_then_all", "schedule.epoch=1", "schedule.scale=1", "optimizer=sgd", "data.per_class=4", "data.batch_size=16"),
    *("data.views=2", "data.augment=photo", "trainer.max_epochs=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
    *("trainer.precision=64-true", "cache.folder=cache", "hydra.run.dir=run"),
]
STEPS = 3  # an epoch: epoch 0 trains the head on features, epoch 1 everything on images; 40 images leave a batch of 8


def parts(number, batch_size, begin=0):
    """The images of each batch from `begin` in `number` processes, in the order of one process."""
    orders = [TrainOrder(range(83), batch_size, seed=3, processes=number, rank=rank) for rank in range(number)]
    for order in orders:
        order.begin_at(5, begin)
    found = []
    for i, batches in enumerate(zip(*orders, strict=True), start=begin):
        own = [[index for _, index in batch[: order.counted(i)[0]]] for order, batch in zip(orders, batches, strict=True)]
        found.append([own[place % number][place // number] for place in range(sum(map(len, own)))])
    return found


def test_each_image_of_an_epoch_is_read_once_in_one_order_by_1_then_2_then_4_processes():
    whole = parts(1, 16)
    resumed = [*parts(1, 16)[:2], *parts(2, 8, begin=2)[:1], *parts(4, 4, begin=3)]
    assert resumed == whole and sorted(index for batch in whole for index in batch) == list(range(83))


def config(devices=1, batch_size=16, **trainer):
    values = {"devices": devices, "num_nodes": 1, "strategy": "auto", "accelerator": "cpu", **trainer}
    return OmegaConf.create({"recipe": "finetune", "data": {"batch_size": batch_size, "mix": "none"}, "trainer": values})


def changes(before, now):
    return [
        Change(f"{group}.{name}", before[group].get(name), value)
        for group in ("data", "trainer")
        for name, value in now[group].items()
        if before[group].get(name) != value
    ]


def resumed(now, processes=1, **before):
    """The changed settings that are refused, after the config is adapted in place."""
    settings = config(**before)
    return [change.name for change in keep_batch(now, InitialProcesses(settings, processes), changes(settings, now))]


@pytest.mark.parametrize(
    ("now", "share"),
    [
        (config(devices=2), 8),
        (config(devices=2, strategy="ddp"), 8),
        (config(devices=2, num_nodes=2, batch_size=4), 4),  # given as it must be
        (config(devices=1, strategy="ddp"), 16),
    ],
)
def test_the_global_batch_stays(now, share):
    assert resumed(now) == [] and now.data.batch_size == share


def test_a_further_resume_counts_from_the_beginning():
    settings, now = config(devices=2, batch_size=8), config(devices=4, batch_size=8, strategy="ddp")
    began = InitialProcesses(settings, 2)
    assert keep_batch(now, began, changes(settings, now)) == [] and now.data.batch_size == 4
    assert describe_change(now, began) == (
        "resumed with 4 processes; the run began with 2: same order of images, batch 4 per process (global batch 16)"
    )
    assert describe_change(settings, began) == describe_change(settings, None) == ""
    written = began.restored_in(now)
    assert (written.trainer.devices, written.trainer.strategy, written.data.batch_size) == (2, "auto", 8) and now.data.batch_size == 4


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            config(devices=3),
            r"global batch of 16 .*, which 3 processes cannot share evenly: resume it with 1, 2, 4, 8, 16 proc",
        ),
        (config(devices=2, batch_size=12), r"is a global batch of 24, but this run began with 16: .* or give data.batch_size=8"),
    ],
)
def test_another_global_batch_is_an_error_that_says_what_to_give(now, message):
    with pytest.raises(UserError, match=message):
        resumed(now)


def test_other_changes_are_refused_as_before():
    assert resumed(config(batch_size=8)) == ["data.batch_size"]
    assert resumed(config(devices=2, strategy="fsdp")) == ["trainer.strategy"]
    assert "trainer.strategy" in resumed(config(devices=2), strategy={"_target_": "lightning.pytorch.strategies.FSDPStrategy"})
    assert resumed(config(devices=2, accelerator="mps")) == ["trainer.accelerator"]


def pretraining(devices):
    cfg = config(devices=devices)
    cfg.recipe = "pretrain"  # its layers train in one process
    return cfg


SHARDING = {"_target_": "ftlit.lit.sharding.fsdp2.Fsdp2Strategy"}


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (config(devices=-1, strategy=SHARDING), {"devices": -1, "strategy": SHARDING}),  # all devices, of another machine
        (config(devices=4, strategy=SHARDING), {"devices": 2, "strategy": SHARDING}),
        (pretraining(3), {"devices": 2}),
    ],
)
def test_a_run_that_is_not_elastic_keeps_its_number_of_processes(now, before):
    with pytest.raises(UserError, match=r"cannot resume this run, which began with 2: give 2 processes \(trainer.devices=\.\.\.\)"):
        resumed(now, processes=2, **before)
    assert now.data.batch_size == 16
    now.trainer.devices = 2  # as the error says
    assert resumed(now, processes=2, **before) == []


def test_a_strategy_that_has_not_changed_is_written_as_it_was_given():
    """The settings of the beginning name no modules, so nothing could be built from theirs."""
    settings, now = config(strategy={"_target_": "ftlit:Fsdp2Strategy"}), config(strategy=SHARDING)
    assert InitialProcesses(settings, 1).restored_in(now) == now


@pytest.mark.parametrize("devices", [1, 2, "3", [0], "0,", "auto"])
def test_the_number_of_processes_is_that_of_the_trainer(devices):
    cfg = config(devices=devices if devices not in ([0], "0,") else 1)
    trainer = Trainer(accelerator="cpu", devices=cfg.trainer.devices, logger=False, enable_checkpointing=False)
    assert processes_of(cfg) == trainer.world_size
    assert processes_of(SimpleNamespace(trainer=OmegaConf.create({"devices": devices, "num_nodes": 2}))) == 2 * trainer.world_size


def run(folder, *words):
    (folder / "sender.py").write_text(SENDER)
    done = warm.run([*TRAIN, *words], cwd=folder, env={**os.environ, "PYTHONPATH": python_path(folder)}, timeout=300)
    assert done.returncode in (0, 130), done.stderr
    return " ".join(done.stdout.split())


def stopped(folder, steps, *words):
    """Train this number of steps, and stop in the middle of an epoch."""
    words = (*words, "+callbacks.sender._target_=sender.Sender", "+callbacks.sender.hook=on_train_batch_end")
    return run(folder, *words, "+callbacks.sender.number=SIGTERM", f"+callbacks.sender.calls={steps}")


def ended(folder):
    """Weights and step of the last checkpoint, and the rows of metrics."""
    checkpoint = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    weights = torch.cat([tensor.double().flatten() for tensor in checkpoint["state_dict"].values()])
    rows = [[float(value or 0) for value in row] for row in list(csv.reader((folder / "run/metrics.csv").open()))[1:]]
    return weights, checkpoint["global_step"], torch.tensor(rows)


def assert_same(one, other):
    assert one[1] == other[1] == 2 * STEPS
    assert float((one[0] - other[0]).abs().max()) < 1e-12  # double precision: the sum over processes rounds differently
    assert one[2].shape == other[2].shape and torch.allclose(one[2], other[2], atol=1e-6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert "resumed with" not in run(folder)
    return ended(folder)


@pytest.mark.e2e
@pytest.mark.ddp
def test_a_run_that_goes_on_in_two_processes_ends_as_the_one_that_never_stopped(whole, tmp_path):
    stopped(tmp_path, 2)  # in the epoch on features
    printed = run(tmp_path, "trainer=ddp_cpu", "resume=true")
    assert "resumed with 2 processes; the run began with 1: same order of images, batch 8 per process" in printed
    assert_same(ended(tmp_path), whole)
    assert "devices: 1\n" in (tmp_path / "run/config.yaml").read_text()  # as it began


@pytest.mark.e2e
@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(1, 2, 4), (4, 1, 2)])
def test_any_number_of_processes_goes_on_with_features_and_with_images(whole, tmp_path, numbers):
    first, second, third = (("trainer.strategy=ddp", f"trainer.devices={number}") for number in numbers)
    size = 16 // numbers[0]
    stopped(tmp_path, 2, *first, f"data.batch_size={size}")
    stopped(tmp_path, 3, *second, f"data.batch_size={size}", "resume=true")  # in the epoch on images
    run(tmp_path, *third, f"data.batch_size={size}", "resume=true")
    assert_same(ended(tmp_path), whole)
