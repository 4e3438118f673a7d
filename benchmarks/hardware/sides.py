"""The sides that `overhead.py` compares. Each returns its seconds per step, in its own process or alternating with another side."""

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

CLASSES, WARM_UP = 10, 3
Optimizer = partial(torch.optim.AdamW, lr=1e-4)
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


@dataclass
class Work:
    """The task of every side.

    Args:
        accelerator: `cpu` or `gpu`.
        steps: number of measured steps, after `WARM_UP` steps that are not counted.
        batch: images per step.
        size: image height and width in pixels.
        baseline: memory of the process in bytes when training began, set by `mark_baseline`.
    """

    accelerator: str
    steps: int
    batch: int
    size: int
    baseline: int = 0

    @property
    def device(self) -> torch.device:
        """The device of a single process."""
        return torch.device("cuda" if self.accelerator == "gpu" else "cpu")

    def loader(self, times: int = 1, *, distinct: bool = False) -> DataLoader:
        """Batches for `times` times the steps and one more: the same batch of random images, or `distinct` images."""
        torch.manual_seed(0)
        batches = times * (WARM_UP + self.steps) + 1
        images = torch.randn(self.batch * (batches if distinct else 1), 3, self.size, self.size)
        data = [(image, place % CLASSES) for place, image in enumerate(images)] * (1 if distinct else batches)
        return DataLoader(data, self.batch, pin_memory=self.accelerator == "gpu")  # type: ignore[arg-type]

    def now(self) -> float:
        """The time in seconds, after all work of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self) -> Any:
        """Autocast to bfloat16 on a GPU, no change on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def mark_baseline(self) -> None:
        """Set the baseline when training begins: memory of modules, network, optimizer and data."""
        self.baseline = torch.cuda.memory_allocated() if self.device.type == "cuda" else _status("VmRSS")

    def peak(self) -> int:
        """Peak memory of the process in bytes; on a GPU the peak allocated memory."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A memory value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def pytorch_loop(work: Work, name: str = "resnet18", layout: torch.memory_format = torch.contiguous_format) -> Callable[[], float]:
    """Full fine-tuning in plain PyTorch: a function that trains one step and returns its seconds."""
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


def separate_pytorch_loop(work: Work) -> list[float]:
    """The PyTorch loop in its own process."""
    step = pytorch_loop(work)
    work.mark_baseline()
    return [step() for _ in range(WARM_UP + work.steps)][WARM_UP:]


def paired(work: Work, name: str, layout: torch.memory_format = torch.contiguous_format) -> dict[str, list[float]]:
    """Alternate steps of the PyTorch loop and of ftlit, so that slow phases of the machine affect both."""
    step, seconds = pytorch_loop(work, name, layout), list[float]()
    found = ours(work, name=name, before_each=lambda: seconds.append(step()))
    return {"ftlit": found, "PyTorch loop": seconds[WARM_UP : WARM_UP + work.steps]}


def ours(work: Work, *, stages: Sequence[str] = ("*",), name: str = "resnet18", compiled: bool = False, **settings: Any) -> list[float]:
    """Step times of the last stage of FineTuner with StagedFinetuning. Raises if that stage does not change the lowest weights."""
    from ftlit import FineTuner, Schedule, Stage, StagedFinetuning, load_backbone
    from ftlit.models.heads import LinearHead

    backbone = load_backbone(name, weights=None)
    head = LinearHead(backbone.num_features, CLASSES)
    if compiled:
        backbone.compile()
        head.compile()
    model = FineTuner(backbone, head, num_classes=CLASSES, optimizer=Optimizer)
    each = WARM_UP + work.steps
    schedule = Schedule([Stage([pattern], step=place * each or None) for place, pattern in enumerate(stages)])
    seconds, moved = _fitted(model, work, StagedFinetuning(schedule), times=len(stages), **settings)
    if moved is not (stages[-1] == "*"):
        raise RuntimeError("the frozen backbone changed" if moved else "the backbone did not change after it was unfrozen")
    return seconds[-work.steps :]


def backbone_finetuning(work: Work, **settings: Any) -> list[float]:
    """Lightning's BackboneFinetuning while the backbone is frozen."""
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

    return _fitted(Network(), work, BackboneFinetuning(**settings))[0][WARM_UP:]


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
    """Seconds of all steps, and whether the backbone changed in the last `work.steps` of them. The time of `before_each` is not counted."""
    import lightning.pytorch as pl

    def sum_of_weights() -> float:  # with FSDP: of the shard of this process
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
            if len(self.begun) == times * (WARM_UP + work.steps) - work.steps:
                self.before = sum_of_weights()
            before_each()
            self.begun.append(work.now())

        def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.moved = trainer.strategy.reduce_boolean_decision(sum_of_weights() != self.before, all=False)

    clock = Clock()
    processes = max(1, torch.cuda.device_count()) if devices == "auto" and work.accelerator == "gpu" else 1
    loader = work.loader(times * processes)  # divided among the processes
    if settings.get("strategy") == "fsdp2":
        from ftlit import Fsdp2Strategy

        settings["strategy"] = Fsdp2Strategy()
    trainer = pl.Trainer(max_epochs=1, accelerator=work.accelerator, devices=devices, callbacks=[clock, callback], **QUIET, **settings)
    trainer.fit(model, loader)
    return clock.seconds, clock.moved


def plain_extraction(work: Work) -> list[float]:
    """Features of resnet50 in a plain loop: inference mode, channels_last, bfloat16 on a GPU. Seconds per batch over a whole pass."""
    network = get_model("resnet50")
    network.fc = nn.Identity()
    network = network.to(work.device, memory_format=torch.channels_last).eval()
    return _passes(work, lambda loader: _features(network, loader, work))


def _features(network: nn.Module, loader: DataLoader, work: Work) -> Tensor:
    with torch.inference_mode(), work.autocast():
        batches = (images.to(work.device, non_blocking=True, memory_format=torch.channels_last) for images, _ in loader)
        return torch.cat([network(images).float().cpu() for images in batches])


def extraction(work: Work) -> list[float]:
    """The same with `extract_features`, into an empty store each time."""
    import tempfile

    from ftlit import extract_features, load_backbone

    backbone = load_backbone("resnet50", weights=None).to(work.device, memory_format=torch.channels_last)

    def work_once(loader: DataLoader) -> None:
        with tempfile.TemporaryDirectory() as folder, work.autocast():
            extract_features(backbone, loader, cache=folder)

    return _passes(work, work_once)


def _passes(work: Work, once: Callable[[DataLoader], Any]) -> list[float]:
    loader = work.loader(distinct=True)  # equal images would be computed once only
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
    "PyTorch loop": separate_pytorch_loop,
    "ftlit": ours,
    "ftlit, head stage": partial(ours, stages=["head"]),
    "BackboneFinetuning, head stage": backbone_finetuning,
    "BackboneFinetuning(train_bn=False), head stage": partial(backbone_finetuning, train_bn=False),
}
ACCELERATED: dict[str, Callable[[Work], list[float]]] = {
    "plain extraction": plain_extraction,
    "extract_features": extraction,
    "head, then all": partial(ours, stages=["head", "*"], name="resnet50", **MIXED),
    "head, then all, compiled": partial(ours, stages=["head", "*"], name="resnet50", compiled=True, **MIXED),
    "head, then all, ddp": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="ddp", **MIXED),
    "head, then all, fsdp2": partial(ours, stages=["head", "*"], name="resnet50", devices="auto", strategy="fsdp2", **MIXED),
}
