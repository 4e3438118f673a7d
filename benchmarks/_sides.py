"""The sides of `overhead.py`: each works in a process of its own, or step by step beside another, and tells its seconds a step."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import get_model

CLASSES, WARM = 10, 3
Optimizer = partial(torch.optim.AdamW, lr=1e-4)
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


@dataclass
class Work:
    """What all sides are given.

    Args:
        accelerator: `cpu` or `gpu`.
        steps: that are counted; `WARM` go before.
        batch: images a step.
        size: pixels a side.
        baseline: bytes that the process held when training began, once `mark_baseline` was called.
    """

    accelerator: str
    steps: int
    batch: int
    size: int
    baseline: int = 0

    @property
    def device(self) -> torch.device:
        """Where a single process works."""
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")

    def loader(self, times: int = 1, *, distinct: bool = False) -> DataLoader:
        """`times` the steps, and one more, of one batch of random images, or of `distinct` ones."""
        torch.manual_seed(0)
        batches = times * (WARM + self.steps) + 1
        images = torch.randn(self.batch * (batches if distinct else 1), 3, self.size, self.size)
        data = [(image, place % CLASSES) for place, image in enumerate(images)] * (1 if distinct else batches)
        return DataLoader(data, self.batch, pin_memory=self.accelerator == "gpu")  # type: ignore[arg-type]

    def now(self) -> float:
        """The time, when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self) -> Any:
        """bfloat16 on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def mark_baseline(self) -> None:
        """Training begins now: what is held is modules, the network, its optimizer and the data."""
        self.baseline = torch.cuda.memory_allocated() if self.device.type == "cuda" else _status("VmRSS")

    def peak(self) -> int:
        """The most bytes that the process has held, on a GPU that were allocated there."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes, as Linux tells them of this process alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def by_hand(work: Work, name: str = "resnet18", layout: torch.memory_format = torch.contiguous_format) -> Callable[[], float]:
    """Full fine-tuning, as most write it: what works one step, and says its seconds."""
    network = get_model(name, num_classes=CLASSES).to(work.device, memory_format=layout)
    optimizer, batches = Optimizer(network.parameters()), iter(work.loader())

    def step() -> float:
        begun = work.now()
        images, labels = next(batches)
        loss = nn.functional.cross_entropy(network(images.to(work.device, memory_format=layout)), labels.to(work.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return work.now() - begun

    return step


def alone_by_hand(work: Work) -> list[float]:
    """The loop in a process of its own."""
    step = by_hand(work)
    work.mark_baseline()
    return [step() for _ in range(WARM + work.steps)][WARM:]


def paired(work: Work, name: str, layout: torch.memory_format = torch.contiguous_format) -> dict[str, list[float]]:
    """A step by hand, one of ftlit, and so on: what slows the machine for a while meets both."""
    step, seconds = by_hand(work, name, layout), list[float]()
    found = ours(work, name=name, before_each=lambda: seconds.append(step()))
    return {"ftlit": found, "by hand": seconds[WARM : WARM + work.steps]}


def ours(work: Work, *, stages: Sequence[str] = ("*",), name: str = "resnet18", compiled: bool = False, **settings: Any) -> list[float]:
    """FineTuner with StagedFinetuning; the steps of the last stage. Raises where that stage does not move the lowest weights."""
    from ftlit import FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
    from ftlit.models.heads import LinearHead

    backbone = load_backbone(name, weights=None)
    head = LinearHead(backbone.num_features, CLASSES)
    if compiled:
        backbone.compile()
        head.compile()
    model = FineTuner(backbone, head, num_classes=CLASSES, optimizer=Optimizer)
    each = WARM + work.steps
    schedule = Schedule([Stage([pattern], step=place * each or None) for place, pattern in enumerate(stages)])
    seconds, moved = _fitted(model, work, StagedFinetuning(schedule), times=len(stages), **settings)
    if moved is not (stages[-1] == "*"):
        raise RuntimeError("the backbone moved" if moved else "the backbone did not move after it was unfrozen")
    return seconds[-work.steps :]


def backbone_finetuning(work: Work, **settings: Any) -> list[float]:
    """Lightning's callback before it unfreezes."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Network(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = get_model("resnet18", num_classes=CLASSES)
            self.backbone.fc = nn.Identity()
            self.head = nn.Linear(512, CLASSES)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return Optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])

    return _fitted(Network(), work, BackboneFinetuning(**settings))[0][WARM:]


def _fitted(
    model: Any,
    work: Work,
    callback: Any,
    *,
    times: int = 1,
    devices: int | str = 1,
    before_each: Callable[[], object] = lambda: None,
    **settings: Any,
) -> tuple[list[float], bool]:
    """Seconds of all steps, and whether the backbone moved in the last `work.steps` of them. What `before_each` takes is not counted."""
    import lightning.pytorch as pl

    def sum_of_weights() -> float:  # under FSDP of this process's part
        return float(sum(parameter.detach().double().sum() for parameter in model.backbone.parameters()))

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.begun: list[float] = []
            self.seconds: list[float] = []

        def on_train_start(self, *_: Any) -> None:
            work.mark_baseline()

        def on_train_batch_start(self, *_: Any) -> None:
            if self.begun:
                self.seconds.append(work.now() - self.begun[-1])
            if len(self.begun) == times * (WARM + work.steps) - work.steps:
                self.before = sum_of_weights()
            before_each()
            self.begun.append(work.now())

        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.moved = trainer.strategy.reduce_boolean_decision(sum_of_weights() != self.before, all=False)

    clock = Clock()
    processes = max(1, torch.cuda.device_count()) if devices == "auto" and work.accelerator == "gpu" else 1
    loader = work.loader(times * processes)  # each process takes its part
    trainer = pl.Trainer(max_epochs=1, accelerator=work.accelerator, devices=devices, callbacks=[clock, callback], **QUIET, **settings)
    trainer.fit(model, loader)
    return clock.seconds, clock.moved


def bare_extraction(work: Work) -> list[float]:
    """Features of resnet50 in a loop: inference mode, channels_last, bfloat16 on a GPU. Seconds a batch over the whole pass."""
    network = get_model("resnet50")
    network.fc = nn.Identity()
    network = network.to(work.device, memory_format=torch.channels_last).eval()
    return _passes(work, lambda loader: _features(network, loader, work))


def _features(network: nn.Module, loader: DataLoader, work: Work) -> Tensor:
    with torch.inference_mode(), work.autocast():
        batches = (images.to(work.device, non_blocking=True, memory_format=torch.channels_last) for images, _ in loader)
        return torch.cat([network(images).float().cpu() for images in batches])


def extraction(work: Work) -> list[float]:
    """The same by `extract_features`, into a store that is empty each time."""
    import tempfile

    from ftlit import extract_features, load_backbone

    backbone = load_backbone("resnet50", weights=None).to(work.device, memory_format=torch.channels_last)

    def work_once(loader: DataLoader) -> None:
        with tempfile.TemporaryDirectory() as folder, work.autocast():
            extract_features(backbone, loader, cache=folder)

    return _passes(work, work_once)


def _passes(work: Work, once: Callable[[DataLoader], Any]) -> list[float]:
    loader = work.loader(distinct=True)  # equal images would share their features
    once(loader)
    begun = work.now()
    once(loader)
    return [(work.now() - begun) / len(loader)]


PAIRS = {
    "resnet18": partial(paired, name="resnet18"),
    "resnet18, both channels last": partial(paired, name="resnet18", layout=torch.channels_last),
    "efficientnet_b0": partial(paired, name="efficientnet_b0"),
    "efficientnet_b0, both channels last": partial(paired, name="efficientnet_b0", layout=torch.channels_last),
}
MIXED = {"precision": "bf16-mixed"}
SIDES: dict[str, Callable[[Work], list[float]]] = {
    "by hand": alone_by_hand,
    "ftlit": ours,
    "ftlit, head stage": partial(ours, stages=["head"]),
    "BackboneFinetuning, head stage": backbone_finetuning,
    "BackboneFinetuning(train_bn=False), head stage": partial(backbone_finetuning, train_bn=False),
}
ACCELERATED: dict[str, Callable[[Work], list[float]]] = {
    "bare extraction": bare_extraction,
    "extract_features": extraction,
    "head, then all": partial(ours, stages=["head", "*"], name="resnet50", **MIXED),
    "head, then all, compiled": partial(ours, stages=["head", "*"], name="resnet50", compiled=True, **MIXED),
    "head, then all, ddp": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="ddp", **MIXED),
    "head, then all, fsdp": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="fsdp", **MIXED),
}
