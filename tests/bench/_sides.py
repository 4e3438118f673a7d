"""The sides of `overhead.py`: each works in a process of its own, or step by step beside another, and tells its seconds a step."""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
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
        standing: bytes that the process held when training began, where it says so (`begins`).
    """

    accelerator: str
    steps: int
    batch: int
    size: int
    standing: int = 0

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

    def begins(self) -> None:
        """Training begins now: what the process holds is modules, the network and the data."""
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        self.standing = torch.cuda.memory_allocated() if self.device.type == "cuda" else resident

    def peak(self) -> int:
        """The most bytes that the process has held, on a GPU that were allocated there."""
        return (
            torch.cuda.max_memory_allocated() if self.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )


def steps_by_hand(work: Work, name: str = "resnet18", layout: torch.memory_format = torch.contiguous_format) -> Iterator[None]:
    """Full fine-tuning, as most write it, a step at a time."""
    network = get_model(name, num_classes=CLASSES).to(work.device, memory_format=layout)
    optimizer = Optimizer(network.parameters())
    for images, labels in work.loader():
        loss = nn.functional.cross_entropy(network(images.to(work.device, memory_format=layout)), labels.to(work.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def by_hand(work: Work) -> list[float]:
    """The loop in a process of its own."""
    work.begins()
    return between([work.now() for _ in steps_by_hand(work)])[WARM:]


def between(moments: Sequence[float]) -> list[float]:
    """From one moment to the next: a step with all that belongs to it."""
    return [later - earlier for earlier, later in pairwise(moments)]


def both(work: Work, name: str, **by_hand: Any) -> dict[str, list[float]]:
    """A step by hand, one of ftlit, and so on: what slows the machine for a while meets both."""
    other, seconds = steps_by_hand(work, name, **by_hand), []

    def step() -> None:
        begun = work.now()
        next(other)
        seconds.append(work.now() - begun)

    found = ours(work, name=name, before_each=step)
    return {"ftlit": found, "by hand": seconds[WARM : WARM + work.steps]}


def ours(work: Work, *, stages: Sequence[str] = ("*",), name: str = "resnet18", compiled: bool = False, **settings: Any) -> list[float]:
    """FineTuner with StagedFinetuning; the steps of the last stage. Raises where that stage does not move the lowest weights."""
    from ftlit import FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
    from ftlit.head import LinearHead

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
    before_each: Callable[[], None] = lambda: None,
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
            work.begins()

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
    """Codes of resnet50 in a loop: inference mode, channels_last, bfloat16 on a GPU. Seconds a batch over the whole pass."""
    network = get_model("resnet50")
    network.fc = nn.Identity()
    network = network.to(work.device, memory_format=torch.channels_last).eval()
    return _passes(work, lambda loader: _codes(network, loader, work))


def _codes(network: nn.Module, loader: DataLoader, work: Work) -> Tensor:
    with torch.inference_mode(), work.autocast():
        batches = (images.to(work.device, non_blocking=True, memory_format=torch.channels_last) for images, _ in loader)
        return torch.cat([network(images).float().cpu() for images in batches])


def extraction(work: Work) -> list[float]:
    """The same by `extract_codes`, into a store that is empty each time."""
    import tempfile

    from ftlit import extract_codes, load_backbone

    backbone = load_backbone("resnet50", weights=None).to(work.device, memory_format=torch.channels_last)

    def work_once(loader: DataLoader) -> None:
        with tempfile.TemporaryDirectory() as folder, work.autocast():
            extract_codes(backbone, loader, cache=folder)

    return _passes(work, work_once)


def _passes(work: Work, once: Callable[[DataLoader], Any]) -> list[float]:
    loader = work.loader(distinct=True)  # equal images would share their codes
    once(loader)
    begun = work.now()
    once(loader)
    return [(work.now() - begun) / len(loader)]


PAIRS = {
    f"{name}{words}": partial(both, name=name, **layout)
    for name in ("resnet18", "efficientnet_b0")
    for words, layout in {"": {}, " that lies channels last": {"layout": torch.channels_last}}.items()
}
MIXED = {"precision": "bf16-mixed"}
SIDES: dict[str, Callable[[Work], list[float]]] = {
    "by hand": by_hand,
    "ftlit": ours,
    "ftlit, head stage": partial(ours, stages=["head"]),
    "BackboneFinetuning, head stage": backbone_finetuning,
    "BackboneFinetuning(train_bn=False), head stage": partial(backbone_finetuning, train_bn=False),
}
ACCELERATED: dict[str, Callable[[Work], list[float]]] = {
    "bare extraction": bare_extraction,
    "extract_codes": extraction,
    "head, then all": partial(ours, stages=["head", "*"], name="resnet50", **MIXED),
    "head, then all, compiled": partial(ours, stages=["head", "*"], name="resnet50", compiled=True, **MIXED),
    "head, then all, ddp": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="ddp", **MIXED),
    "head, then all, fsdp": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="fsdp", **MIXED),
}
