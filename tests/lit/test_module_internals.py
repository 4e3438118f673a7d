"""Contract: the library still does this. Each test fails if a library changes a part that ftlit.lit.module_internals relies on."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassF1Score

import ftlit
from ftlit.lit import module_internals as internals
from ftlit.lit.metrics import SplitMetrics

SOURCE = Path(ftlit.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore")  # advice of Lightning on loaders, logging and modes

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(2, 2), nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.high(self.low(batch)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model, *callbacks, **settings):
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=list(callbacks), **QUIET, **settings)
    trainer.fit(model, DataLoader(torch.ones(2, 2)))
    return trainer


def test_a_module_has_a_trainer_after_fit_and_none_before():
    model = Net()
    assert internals.trainer_of(model) is None
    trainer = fit(model)
    assert internals.trainer_of(model) is trainer


def test_a_module_that_overrides_configure_model_or_setup_builds_layers_late():
    class Late(Net):
        def configure_model(self):
            pass

    class Later(Net):
        def setup(self, stage):
            pass

    assert [internals.builds_layers_late(model()) for model in (Net, Late, Later)] == [False, True, True]


def test_hooks_that_a_module_or_its_class_overrides_are_known():
    class Changed(Net):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch

    replaced, hooks = Net(), ("on_before_batch_transfer", "transfer_batch_to_device")
    replaced.transfer_batch_to_device = lambda batch, device, dataloader_idx: batch
    found = [internals.overrides(module, pl.LightningModule, *hooks) for module in (Net(), Changed(), replaced)]
    assert found == [False, True, True] and not internals.overrides(Changed(), pl.LightningModule, hooks[1])


class Unfreeze(pl.Callback):
    """Unfreeze the low layer at the second step, and record for how many parameters DDP averages gradients."""

    def __init__(self, wrap):
        self.wrap, self.averaged = wrap, []  # parameters, by step

    def setup(self, trainer, module, stage):
        module.low.requires_grad_(False)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            module.low.requires_grad_(True)
            if self.wrap:
                internals.wrap_ddp_again(trainer)
        if batch_idx == 0 or self.wrap:
            trainer.strategy.model.register_comm_hook(self, Unfreeze.average)
        self.averaged.append(0)

    def average(self, bucket):
        self.averaged[-1] += len(bucket.parameters())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future


@pytest.mark.parametrize(("wrap", "averaged"), [(True, [2, 4]), (False, [2, 2])])
def test_ddp_averages_gradients_of_unfrozen_parameters_only_after_wrapping_again(wrap, averaged):
    unfreeze = Unfreeze(wrap)
    trainer = fit(Net(), unfreeze, strategy="ddp", devices=1)
    assert unfreeze.averaged == averaged and isinstance(trainer.strategy.lightning_module, Net)


def test_wrapping_again_on_cuda_waits_for_the_last_step_and_for_the_broadcast(monkeypatch):
    done = []
    strategy = DDPStrategy(parallel_devices=[torch.device("cuda:0")], cluster_environment=LightningEnvironment())
    strategy.model = object.__new__(DistributedDataParallel)
    monkeypatch.setattr(strategy, "configure_ddp", lambda: done.append("wrapped"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(str(device)))
    internals.wrap_ddp_again(SimpleNamespace(strategy=strategy))
    assert done == ["cuda:0", "wrapped", "cuda:0"]


def test_on_one_device_nothing_is_wrapped():
    seen = []

    class Wrap(pl.Callback):
        def on_train_start(self, trainer, module):
            internals.wrap_ddp_again(trainer)
            seen.append(isinstance(trainer.strategy.model, DistributedDataParallel))

    fit(Net(), Wrap())
    assert seen == [False]


def test_the_strategy_takes_the_number_of_processes_before_it_sets_up():
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    strategy.parallel_devices, strategy.num_nodes = [torch.device("cpu")] * 4, 2
    assert strategy._data_parallel_size == "auto"
    internals.shard_over_all_processes(strategy)
    assert strategy._data_parallel_size == 8


def test_a_configure_model_that_only_shards_adds_no_layers():
    class Shards(Net):
        @internals.only_shards
        def configure_model(self):
            pass

    class Adds(Shards):
        def configure_model(self):
            pass

    assert [internals.builds_layers_late(kind()) for kind in (Net, Shards, Adds)] == [False, False, True]


def test_partly_and_wholly_compiled_modules_are_recognised():
    plain, part, whole = Net(), Net(), Net()
    part.low.compile(backend="eager")
    fit(torch.compile(whole, backend="eager"))
    assert [internals.is_compiled(model) for model in (plain, part, whole)] == [False, True, True]


def test_the_version_of_a_tensor_counts_in_place_changes_also_those_of_an_optimizer():
    weight = nn.Parameter(torch.ones(2))
    optimizer, versions = torch.optim.SGD([weight], lr=1.0), [internals.version_of(weight)]
    with torch.no_grad():
        weight.add_(1)
    versions.append(internals.version_of(weight))
    weight.sum().backward()
    optimizer.step()
    versions.append(internals.version_of(weight))
    weight.detach().sum().item()
    assert versions == sorted(set(versions)) and internals.version_of(weight) == versions[-1]
    with torch.inference_mode():
        assert internals.version_of(torch.ones(2)) is None


def test_a_metric_continues_from_the_state_of_another():
    for make_metric, batches in ((MeanMetric, [(torch.tensor(1.0),), (torch.tensor(4.0),)]), (f1, [labels(0), labels(1)])):
        whole, first, second = make_metric(), make_metric(), make_metric()
        for batch in batches:
            whole.update(*batch)
        first.update(*batches[0])
        internals.load_state_of_metric(second, internals.state_of_metric(first))
        second.update(*batches[1])
        assert torch.equal(second.compute(), whole.compute()) and second.update_count == whole.update_count == 2


def f1():
    return MulticlassF1Score(3, average="macro")


def labels(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, (8,), generator=draw), torch.randint(3, (8,), generator=draw)


def test_the_state_of_a_metric_can_be_saved_and_loaded_with_weights_only(tmp_path):
    metric = f1()
    metric.update(*labels(0))
    torch.save(internals.state_of_metric(metric), tmp_path / "state.pt")
    again = f1()
    internals.load_state_of_metric(again, torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.compute(), metric.compute())


def test_the_sum_of_what_three_processes_counted_is_shared_by_two():
    counted = [SplitMetrics(3), SplitMetrics(3), SplitMetrics(3)]
    whole, resumed = SplitMetrics(3), [SplitMetrics(3), SplitMetrics(3)]
    draw = torch.Generator().manual_seed(0)
    for metric in counted:
        batch = torch.randn(4, 3, generator=draw), torch.randint(3, (4,), generator=draw), torch.rand((), generator=draw)
        metric.update(*batch)
        whole.update(*batch)
    states = [internals.state_of_metric(metric) for metric in counted]
    for rank, metric in enumerate(resumed):
        internals.load_state_of_metric(metric, internals.share_of_sum(metric, states, rank))
    assert [metric.update_count for metric in resumed] == [3, 3]  # both compute at the end of the epoch, which is a collective operation
    assert int(resumed[1].images) == 0 and resumed[0].compute() == whole.compute()


UNDOCUMENTED = {  # public by name, but not in Lightning's documentation
    *("fit_loop", "epoch_loop", "batch_progress", "distributed_sampler_kwargs", "configure_ddp", "val_check_batch"),
    *("wait_count", "best_score", "stopping_threshold", "total_batch_idx", "datamodule", "fast_dev_run"),
}


def outside_attributes(path):
    """Yield the attributes that a module reads from or sets on objects other than `self`, or by a name in `getattr`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.attr
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr") and isinstance(node.args[1], ast.Constant):
            yield node.args[1].value


def test_no_other_module_accesses_private_or_undocumented_parts():
    files = [path for folder in ("lit", "recipes", "cli") for path in (SOURCE / folder).rglob("*.py") if "internals" not in path.stem]
    found = {(path.name, name) for path in files for name in outside_attributes(path)}
    allowed = ("_target_", "_exit")  # a key of Hydra, and `os._exit`
    private = {(file, name) for file, name in found if name.startswith("_") and not name.startswith("__") and name not in allowed}
    assert private | {(file, name) for file, name in found if name in UNDOCUMENTED} == set()


def test_before_setup_comes_before_the_process_group(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")  # restored afterwards
    monkeypatch.delenv("MASTER_PORT")
    seen = []
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", **QUIET)
    internals.name_meeting_place(trainer)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and os.environ["MASTER_PORT"].isdecimal()
    monkeypatch.setattr(trainer.strategy, "setup_environment", lambda: seen.append("group"))
    internals.before_setup(trainer, lambda: seen.append("action"))
    trainer.strategy.setup_environment()
    assert seen == ["action", "group"]


@pytest.mark.parametrize(("strategy", "known"), [("ddp", True), ("ddp_fork", False), ("ddp_notebook", False)])
def test_forks_of_one_program_have_no_rank_before_setup(strategy, known):
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, **QUIET)
    assert internals.knows_rank_before_setup(trainer) is known


@pytest.mark.parametrize("stopping", [False, True])
def test_a_dead_process_is_announced_before_this_one_ends_which_has_time_to_do_so_after_a_signal(monkeypatch, stopping):
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    monkeypatch.setattr(_ChildProcessObserver, "_terminate_all", _ChildProcessObserver._terminate_all)  # restored afterwards
    events = []
    monkeypatch.setattr(os, "_exit", lambda status: events.append(status))
    monkeypatch.setattr(internals, "time", SimpleNamespace(sleep=events.append))
    internals.announce_dead_processes(lambda: events.append("line"), lambda: stopping)
    dead, alive = (
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds}); raise SystemExit(3)"]) for seconds in (0, 60)
    )
    dead.wait()
    waited = [internals.SECONDS_TO_END] if stopping else []
    assert _ChildProcessObserver(os.getpid(), [dead, alive])._run() and events == [*waited, "line", 1]
    assert alive.wait() == -signal.SIGKILL
