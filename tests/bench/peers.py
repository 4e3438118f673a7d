"""ftlit beside Lightning's BackboneFinetuning and finetuning-scheduler: small runs on the CPU, one table in markdown.

python tests/bench/peers.py [--fts-python PYTHON]

PYTHON is an interpreter that has finetuning-scheduler (`pip install finetuning-scheduler` in an environment of its own); without it that
column says "not installed". Each peer runs in processes of its own: one, then two for DDP. Every peer gets the same net, data, rates and
epochs, and the settings that its documentation offers for the case. A probe that raises is a result; why is on stderr.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, DistributedSampler

RATE, RATIO = 0.1, 0.1  # of the head; of the backbone over the head
IMAGES, BATCH, EPOCHS = 32, 8, 4
STEPS = IMAGES // BATCH

ROWS = {  # probe -> what the table says of it
    "ranks": "DDP: largest difference between two processes' weights after unfreezing",
    "one_process": "DDP: largest difference of two processes to one, float64",
    "bytes": "DDP: bytes averaged in the head stage, over those of the head",
    "resume_weights": "resumed from the end of the epoch that unfroze: largest difference to the run that went on",
    "resume_trains": "... does the backbone still train",
    "frozen_weights": "head stage: largest change of the backbone's weights",
    "frozen_statistics": "... of its running statistics",
    "frozen_outputs": "... of its outputs while training, against those in evaluation mode at the start",
    "frozen_by_hand": "... the same where the user puts the backbone in `eval()` by hand",
    "frozen_graph": "... does it keep a graph for the backward pass",
    "equal_values": "backbone tensors that train after unfreezing, where an unmoved tensor of the head has equal values",
    "lambda": "`LambdaLR`: backbone's rate over the head's (0.1 asked for)",
    "one_cycle": "`OneCycleLR`: the same",
    "plateau": "`ReduceLROnPlateau`: the same",
    "by_epoch": "a stage begins at an epoch",
    "by_step": "... at a step within an epoch",
    "by_metric": "... when a metric stalls",
    "no_early_end": "`EarlyStopping` cannot end the run before the last stage",
    "same_optimizer": "the optimizer's groups stay the same throughout",
    "trainable_only": "the backbone trains with an optimizer built over `requires_grad` parameters only",
    "any_name": "works where the backbone is called something else",
    "hook_time": "time that the callback adds to a step, backbone of 106 modules",
}

NOTES = """Yes and no are measured; "no such option" is read in the documentation. Rows of frozen parts: `train_bn=False` and
`frozen_bn_track_running_stats=False`, net with batch norm and dropout; BackboneFinetuning's head stage leaves batch norms trainable all the
same. Equal values: it warns of what it skips. Schedulers: its own `lambda_func` (constant here) sets the backbone's rate at each epoch;
finetuning-scheduler has `apply_lambdas_new_pgs=True`."""


class Ours:
    """ftlit."""

    distribution = "ftlit"

    def optimizer(self, module: LightningModule) -> SGD:
        from ftlit import build_optimizer

        return build_optimizer(module, partial(SGD, lr=RATE, momentum=0.9), [("head", 1.0), (module.name, RATIO)])

    def callbacks(self, module: LightningModule, *, epoch: int = 1, step: int | None = None, metric: bool = False) -> list[Callback]:
        from ftlit import Schedule, Stage, StagedFinetuning, Until

        if step is not None:
            second = Stage(["*"], step=step)
        else:
            second = Stage(["*"], epoch, until=Until("val_loss", mode="min", patience=1) if metric else None)
        return [StagedFinetuning(Schedule([Stage(["head"]), second]))]

    checkpoint = staticmethod(ModelCheckpoint)
    early_stopping = staticmethod(EarlyStopping)


class Lightning:
    """Lightning's own callback. It unfreezes at an epoch; there is no option for a step or a metric."""

    distribution = "lightning"

    def optimizer(self, module: LightningModule) -> SGD:
        return trainable_only(module)

    def callbacks(self, module: LightningModule, *, epoch: int = 1, step: int | None = None, metric: bool = False) -> list[Callback] | None:
        from lightning.pytorch.callbacks import BackboneFinetuning

        if step is not None or metric:
            return None
        return [BackboneFinetuning(epoch, lambda_func=lambda _: 1.0, initial_denom_lr=1 / RATIO, train_bn=False)]

    checkpoint = staticmethod(ModelCheckpoint)
    early_stopping = staticmethod(EarlyStopping)


class Scheduler:
    """finetuning-scheduler. By epochs alone unless a metric is asked for; phases are lists of parameter names."""

    distribution = "finetuning-scheduler"
    allow_untested = False

    def optimizer(self, module: LightningModule) -> SGD:
        return trainable_only(module)

    def callbacks(self, module: LightningModule, *, epoch: int = 1, step: int | None = None, metric: bool = False) -> list[Callback] | None:
        from finetuning_scheduler import FinetuningScheduler, FTSEarlyStopping

        if step is not None:
            return None
        names = [name for name, _ in module.named_parameters()]
        head = [name for name in names if name.startswith("head")]
        phases = {
            0: {"params": head, "max_transition_epoch": epoch},
            1: {"params": [name for name in names if name not in head], "lr": RATE * RATIO},
        }
        if not metric:
            phases[1]["max_transition_epoch"] = (
                EPOCHS  # asked for; the run goes on as far as Trainer says, or as this says where that is more
            )
        scheduler = FinetuningScheduler(
            ft_schedule=phases,
            restore_best=False,
            epoch_transitions_only=not metric,
            apply_lambdas_new_pgs=True,
            frozen_bn_track_running_stats=False,
            allow_untested=self.allow_untested,
            logging_level=logging.ERROR,
        )
        return [scheduler, *([FTSEarlyStopping("val_loss", patience=1)] if metric else [])]

    def checkpoint(self, *args: Any, **kwargs: Any) -> Callback:
        from finetuning_scheduler import FTSCheckpoint

        return FTSCheckpoint(*args, **kwargs)

    early_stopping = None  # its own takes the place of Lightning's: see `no_early_end`


PEERS = {"ftlit": Ours, "BackboneFinetuning": Lightning, "finetuning-scheduler": Scheduler}


def trainable_only(module: LightningModule) -> SGD:
    return SGD([p for p in module.parameters() if p.requires_grad], lr=RATE, momentum=0.9)


class Net(LightningModule):
    """A backbone under any name and a head. `stalled` makes the logged metric a constant."""

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        optimizer: Callable[[LightningModule], SGD],
        *,
        curve: Callable[[SGD], Any] | None = None,
        stalled: bool = False,
        name: str = "backbone",
    ) -> None:
        super().__init__()
        setattr(self, name, backbone)
        self.head, self.optimizer, self.curve, self.stalled, self.name = head, optimizer, curve, stalled, name

    @property
    def lower(self) -> nn.Module:
        return getattr(self, self.name)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        codes = self.lower(batch[0].to(self.dtype))
        self.keeps_graph = codes.requires_grad
        return nn.functional.cross_entropy(self.head(codes), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.head(self.lower(batch[0].to(self.dtype))), batch[1])
        self.log("val_loss", torch.ones(()) if self.stalled else loss, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self)
        return optimizer if self.curve is None else {"optimizer": optimizer, "lr_scheduler": self.curve(optimizer)}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())


def with_norms(blocks: int = 1) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5)]
    return nn.Sequential(*first, *(layer for _ in range(blocks - 1) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8))))


def linear_head() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(8, 3)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(2)
    data = [(torch.randn(4, generator=generator), i % 3) for i in range(IMAGES)]
    sampler = DistributedSampler(data, num_replicas=world_size(), rank=int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    return DataLoader(data, batch_size=BATCH // world_size(), sampler=sampler)


def world_size() -> int:
    return int(os.environ.get("PEERS_WORLD", 1))


def fit(net: Net, callbacks: list[Callback], folder: Path, *, epochs: int = EPOCHS, resume: Path | None = None, **settings: Any) -> Trainer:
    torch.manual_seed(3)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=world_size(),
        strategy="ddp" if world_size() > 1 else "auto",
        callbacks=callbacks,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(net, loader(), loader(), ckpt_path=resume)
    return trainer


class Watch(Callback):
    """What each step finds: last in the list, so that it comes after the peer's own hook."""

    def __init__(self) -> None:
        self.unfrozen_at: int | None = None
        self.groups: list[int] = []
        self.ratios: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        self.groups.append(len(groups))
        lower = next(pl_module.lower.parameters())
        if lower.requires_grad:
            if self.unfrozen_at is None:
                self.unfrozen_at = trainer.global_step
            rates = {id(p): group["lr"] for group in groups for p in group["params"]}
            self.ratios.append(rates.get(id(lower), 0.0) / rates[id(next(pl_module.head.parameters()))])


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def furthest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# Probes of one process: (peer, folder) -> {row: value}. Values are numbers, truths or a few words.


def one_process_weights(peer: Any, folder: Path) -> dict[str, Any]:
    """Nothing for the table: the weights that the two processes are compared with."""
    net = Net(plain(), linear_head(), peer.optimizer).double()
    fit(net, peer.callbacks(net), folder)
    torch.save(flat(net), folder.parent / "one.pt")
    return {}


def resume(peer: Any, folder: Path) -> dict[str, Any]:
    def run(path: Path | None) -> Net:
        net = Net(plain(), linear_head(), peer.optimizer)
        keep = peer.checkpoint(dirpath=folder / "kept", filename="{epoch}", save_top_k=-1, monitor="val_loss", save_on_train_epoch_end=True)
        fit(net, [*peer.callbacks(net), keep], folder, resume=path)
        return net

    went_on = run(None)
    path = folder / "kept" / "epoch=1.ckpt"
    path = path.rename(folder / "resumed.ckpt")
    resumed = run(path)
    then = torch.load(path, weights_only=False)["state_dict"]
    moved = max(furthest(then[f"backbone.{name}"], p.detach()) for name, p in resumed.backbone.named_parameters())
    return {"resume_weights": furthest(flat(went_on), flat(resumed)), "resume_trains": moved > 0}


def frozen(peer: Any, folder: Path) -> dict[str, Any]:
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(5)) + 1

    class HeadStageEnds(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 3 * STEPS:
                self.lower, self.keeps_graph = deepcopy(pl_module.lower), pl_module.keeps_graph

    start = with_norms().eval()

    def head_stage(mode: bool) -> HeadStageEnds:
        net, end = Net(with_norms().train(mode), linear_head(), peer.optimizer), HeadStageEnds()
        fit(net, [*peer.callbacks(net, epoch=3), end], folder)
        return end

    end, by_hand = head_stage(True), head_stage(False)
    was, now = dict(start.named_buffers()), dict(end.lower.named_buffers())
    with torch.no_grad():
        return {
            "frozen_weights": furthest(flat(start), flat(end.lower)),
            "frozen_statistics": max(furthest(was[name], now[name]) for name in was if "running" in name),
            "frozen_outputs": furthest(start(images), end.lower(images)),
            "frozen_by_hand": furthest(start(images), by_hand.lower(images)),
            "frozen_graph": end.keeps_graph,
        }


def equal_values(peer: Any, folder: Path) -> dict[str, Any]:
    class TwoHeads(nn.Module):  # as where a second task has no labels yet: its norm is as new as the backbone's
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = linear_head(), nn.LayerNorm(8)

        def forward(self, codes: Tensor) -> Tensor:
            return self.first(codes)

    torch.manual_seed(0)
    net = Net(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh()), TwoHeads(), peer.optimizer)
    start = deepcopy(net.lower)
    fit(net, peer.callbacks(net), folder)
    moved = [not torch.equal(a, b) for a, b in zip(start.parameters(), net.lower.parameters(), strict=True)]
    return {"equal_values": f"{sum(moved)} of {len(moved)}"}


def scheduler(row: str, curve: Callable[[SGD], Any]) -> Callable[[Any, Path], dict[str, Any]]:
    def ratio(peer: Any, folder: Path) -> str:
        net, watch = Net(plain(), linear_head(), peer.optimizer, curve=curve, stalled=True), Watch()
        fit(net, [*peer.callbacks(net), watch], folder)
        low, high = min(watch.ratios), max(watch.ratios)
        return f"{low:.2g}" if high - low < 1e-6 else f"{low:.2g} to {high:.2g}"

    def probe(peer: Any, folder: Path) -> dict[str, Any]:
        try:
            return {row: ratio(peer, folder)}
        except Exception as error:
            if "allow_untested" not in str(error):
                raise
            peer.allow_untested, refusal = True, "refuses; with `allow_untested` "
            try:
                return {row: refusal + ratio(peer, folder)}
            except Exception as then:
                return {row: refusal + failure(then)}
            finally:
                peer.allow_untested = False

    return probe


def steps_of(optimizer: SGD) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


lambda_lr = scheduler("lambda", lambda o: {"scheduler": LambdaLR(o, lambda step: 0.9**step), "interval": "step"})
one_cycle = scheduler(
    "one_cycle", lambda o: {"scheduler": OneCycleLR(o, max_lr=steps_of(o), total_steps=EPOCHS * STEPS + 1), "interval": "step"}
)
plateau = scheduler("plateau", lambda o: {"scheduler": ReduceLROnPlateau(o, factor=0.5, patience=0), "monitor": "val_loss"})


def begins(row: str, at: int, *, groups: bool = False, **when: Any) -> Callable[[Any, Path], dict[str, Any]]:
    def probe(peer: Any, folder: Path) -> dict[str, Any]:
        net, watch = Net(plain(), linear_head(), peer.optimizer, stalled=True), Watch()
        callbacks = peer.callbacks(net, **when)
        if callbacks is None:
            return {row: "no such option"}
        fit(net, [*callbacks, watch], folder)
        same = {"same_optimizer": len(set(watch.groups)) == 1 or f"no, {watch.groups[0]} then {watch.groups[-1]}"} if groups else {}
        return {row: watch.unfrozen_at == at or f"no, at step {watch.unfrozen_at} for {at}"} | same

    return probe


by_epoch = begins("by_epoch", 2 * STEPS, groups=True, epoch=2)
by_step = begins("by_step", STEPS + 2, step=STEPS + 2)
by_metric = begins("by_metric", 2 * STEPS, metric=True, epoch=3)  # the second value is no better than the first


def no_early_end(peer: Any, folder: Path) -> dict[str, Any]:
    net, watch = Net(plain(), linear_head(), peer.optimizer, stalled=True), Watch()
    stopping = [peer.early_stopping("val_loss", patience=1)] if peer.early_stopping else []
    callbacks = [*peer.callbacks(net, epoch=4, metric=not stopping), *stopping, watch]
    trainer = fit(net, callbacks, folder, epochs=8)
    return {"no_early_end": watch.unfrozen_at is not None or f"no, ended after epoch {trainer.current_epoch - 1}"}


def trainable_only_probe(peer: Any, folder: Path) -> dict[str, Any]:
    net = Net(plain(), linear_head(), trainable_only)
    start = flat(net.lower)
    fit(net, peer.callbacks(net), folder)
    return {"trainable_only": furthest(start, flat(net.lower)) > 0}


def any_name(peer: Any, folder: Path) -> dict[str, Any]:
    net = Net(plain(), linear_head(), peer.optimizer, name="encoder")
    start = flat(net.lower)
    fit(net, peer.callbacks(net), folder)
    return {"any_name": furthest(start, flat(net.lower)) > 0}


def hook_time(peer: Any, folder: Path) -> dict[str, Any]:
    net, profiler = Net(with_norms(53), linear_head(), peer.optimizer), SimpleProfiler()
    callbacks = peer.callbacks(net)
    fit(net, callbacks, folder, epochs=8, profiler=profiler)
    own = f"[Callback]{type(callbacks[0]).__name__}"
    per_step = [taken for action, taken in profiler.recorded_durations.items() if action.startswith(own) and len(taken) == 8 * STEPS]
    return {"hook_time": f"{sum(sorted(taken)[len(taken) // 2] for taken in per_step) * 1e6:.0f} µs"}


ONE = {
    one_process_weights: (),
    resume: ("resume_weights", "resume_trains"),
    frozen: ("frozen_weights", "frozen_statistics", "frozen_outputs", "frozen_by_hand", "frozen_graph"),
    equal_values: ("equal_values",),
    lambda_lr: ("lambda",),
    one_cycle: ("one_cycle",),
    plateau: ("plateau",),
    by_epoch: ("by_epoch", "same_optimizer"),
    by_step: ("by_step",),
    by_metric: ("by_metric",),
    no_early_end: ("no_early_end",),
    trainable_only_probe: ("trainable_only",),
    any_name: ("any_name",),
    hook_time: ("hook_time",),
}


# Probes of two processes, every one of which runs them.


def two_processes(peer: Any, folder: Path) -> dict[str, Any]:
    class Gather(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            own = flat(pl_module)
            self.all = [torch.empty_like(own) for _ in range(trainer.world_size)]
            torch.distributed.all_gather(self.all, own)

    net, gather = Net(plain(), linear_head(), peer.optimizer).double(), Gather()
    fit(net, [*peer.callbacks(net), gather], folder)
    return {"ranks": furthest(*gather.all), "one_process": max(furthest(torch.load(folder.parent / "one.pt"), own) for own in gather.all)}


def averaged_bytes(peer: Any, folder: Path) -> dict[str, Any]:
    class Count(Callback):
        """Counts what each wrapper's reducer averages, in the first epoch."""

        wrapper = None
        bytes = 0

        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.strategy.model is not self.wrapper:
                self.wrapper = trainer.strategy.model
                self.wrapper.register_comm_hook(trainer, self.count)

        def count(self, trainer: Trainer, bucket: GradBucket) -> Future[Tensor]:
            if trainer.current_epoch == 0:
                self.bytes += bucket.buffer().nbytes
            return allreduce_hook(None, bucket)

    net, count = Net(with_norms(), linear_head(), peer.optimizer), Count()
    fit(net, [*peer.callbacks(net), count], folder, epochs=2)
    return {"bytes": f"{count.bytes / STEPS / sum(p.nbytes for p in net.head.parameters()):.2f}"}


TWO = {two_processes: ("ranks", "one_process"), averaged_bytes: ("bytes",)}


def failure(error: Exception) -> str:
    return f"fails ({type(error).__name__})"


def probe_all(name: str, folder: Path) -> None:
    """Run one peer's probes; leave their values in `folder`."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    peer, values = PEERS[name](), {}
    for probe, rows in (TWO if world_size() > 1 else ONE).items():
        own = folder / ("-".join(rows) or probe.__name__)
        own.mkdir(exist_ok=True)  # two processes share it
        try:
            values |= probe(peer, own)
        except Exception as error:
            values |= dict.fromkeys(rows, failure(error))
            print(f"{name}, {', '.join(rows)}: {error!r}", file=sys.stderr)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        versions = {package: version(package) for package in (peer.distribution, "lightning", "torch")}
        (folder / f"{world_size()}.json").write_text(json.dumps({"values": values, "versions": versions}))


def measure(name: str, python: str) -> tuple[dict[str, Any], dict[str, str]]:
    """One peer's values and the versions they were found with."""
    found = subprocess.run(
        [python, "-c", f"from importlib.metadata import version; version({PEERS[name].distribution!r})"], capture_output=True
    )
    if found.returncode != 0:
        return dict.fromkeys(ROWS, "not installed"), {}
    values, versions = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for world, probes in ((1, ONE), (2, TWO)):
            command = [python, __file__, "--peer", name, "--folder", folder]
            done = subprocess.run(command, env=os.environ | {"PEERS_WORLD": str(world), "OMP_NUM_THREADS": "1"}, stdout=sys.stderr)
            values |= {row: f"fails (exit status {done.returncode})" for rows in probes.values() for row in rows}
            if (written := Path(folder, f"{world}.json")).exists():
                told = json.loads(written.read_text())
                values, versions = values | told["values"], told["versions"]
    return values, versions


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "0" if value == 0 else f"{value:.0e}"
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fts-python", default=sys.executable, help="interpreter that has finetuning-scheduler")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        probe_all(given.peer, given.folder)
        return
    measured = {name: measure(name, given.fts_python if PEERS[name] is Scheduler else sys.executable) for name in PEERS}
    print("| |", " | ".join(PEERS), "|\n|---|" + "---|" * len(PEERS))
    for row, description in ROWS.items():
        print(f"| {description} |", " | ".join(cell(values[row]) for values, _ in measured.values()), "|")
    versions = (f"{name}: " + ", ".join(f"{k} {v}" for k, v in found.items()) for name, (_, found) in measured.items() if found)
    print(f"\nMeasured {date.today()} on the CPU with {'; '.join(versions)}. {NOTES}")


if __name__ == "__main__":
    main()
