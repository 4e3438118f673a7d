"""Images per second on a device: training and extraction of ftlit against a hand-written loop with the same precision and layout.

python benchmarks/hardware/device.py [--networks resnet50,vit_b_16] [--batches 32,256] [--steps 20] [--out benchmarks/results/device.json]

Images are random and on the device already. A clock runs over all steps of a loop, with one wait for the device at each end: a wait after
each step would hide what a wait inside a step costs. Runs on a CPU too. The JSON names the card.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import Row, compared, in_turn, machine, table, written
from _options import count, several

from ftlit import Backbone, FineTuner, Schedule, Stage, StagedFinetuning, extract_features, load_backbone
from ftlit.features.fill import evaluating
from ftlit.finetuning.freeze import set_trainable
from ftlit.models.heads import LinearHead
from ftlit.models.precision import autocast_of, device_of, precision_for

NETWORKS = ("resnet18", "resnet50", "vit_b_16")
CLASSES, WARM_UP = 10, 5
Optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


class Repeated:
    """A loader of one batch that is on the device already."""

    def __init__(self, batch: tuple[Tensor, Tensor], times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch for _ in range(self.times))


class Clock(pl.Callback):
    """Seconds of the steps after `WARM_UP`."""

    def __init__(self, steps: int, wait: Callable[[], None]) -> None:
        self.marks, self.wait, self.seen = (WARM_UP, WARM_UP + steps), wait, list[float]()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, number: int) -> None:
        if number in self.marks:
            self.wait()
            self.seen.append(time.perf_counter())


class Bench:
    """The sides for one network and batch; each returns seconds per image."""

    def __init__(self, name: str, batch: int, steps: int, size: int, device: torch.device) -> None:
        self.name, self.steps, self.size, self.device = name, steps, size, device
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, size, size, generator=generator).to(device, memory_format=torch.channels_last)
        self.batch = (images, (torch.arange(batch) % CLASSES).to(device))
        self.precision = precision_for(self.parts()[0], device_of("gpu" if device.type == "cuda" else "cpu"))

    def parts(self) -> tuple[Backbone, nn.Module]:
        """A new network on the device."""
        torch.manual_seed(0)
        backbone = load_backbone(self.name, weights=None, **({} if self.size == 224 else {"input_spec": {"size": self.size}}))
        head = LinearHead(backbone.num_features, CLASSES)
        return backbone.to(self.device, memory_format=torch.channels_last), head.to(self.device)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def per_image(self, step: Callable[[], object]) -> float:
        """Seconds per image of a step that is repeated."""
        for _ in range(WARM_UP):
            step()
        self.wait()
        begin = time.perf_counter()
        for _ in range(self.steps):
            step()
        self.wait()
        return (time.perf_counter() - begin) / self.steps / len(self.batch[0])

    def training_loop(self) -> float:
        """The best hand-written loop."""
        backbone, head = self.parts()
        whole = nn.ModuleDict({"backbone": backbone, "head": head}).train()
        set_trainable(whole, ["*"])
        optimizer, (images, labels) = Optimizer(whole.parameters()), self.batch

        def step() -> None:
            with autocast_of(self.precision, self.device.type):
                features = backbone.pool(backbone(images))
            loss = nn.functional.cross_entropy(head(features.float()), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return self.per_image(step)

    def training(self) -> float:
        """FineTuner with a stage that trains all layers."""
        backbone, head = self.parts()
        model = FineTuner(backbone, head, num_classes=CLASSES, optimizer=Optimizer)
        clock = Clock(self.steps, self.wait)
        accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        callbacks = [clock, StagedFinetuning(Schedule([Stage(["*"])]))]
        trainer = pl.Trainer(max_epochs=1, accelerator=accelerator, devices=1, precision=self.precision, callbacks=callbacks, **QUIET)
        trainer.fit(model, Repeated(self.batch, WARM_UP + self.steps + 1))
        return (clock.seen[1] - clock.seen[0]) / self.steps / len(self.batch[0])

    def extraction_loop(self) -> float:
        """Pooled features in a plain loop, copied to the CPU."""
        backbone, _ = self.parts()

        def step() -> Tensor:
            with torch.inference_mode(), autocast_of(self.precision, self.device.type):
                return backbone.pool(backbone(self.batch[0])).float().cpu()

        with evaluating(backbone):
            return self.per_image(step)

    def extraction(self) -> float:
        """`extract_features` of different images, into an empty store."""
        backbone, _ = self.parts()
        batches = [(self.batch[0] + number, self.batch[1]) for number in range(self.steps)]
        with tempfile.TemporaryDirectory() as folder, autocast_of(self.precision, self.device.type):
            extract_features(backbone, [(self.batch[0] - 1, self.batch[1])], cache=folder)
            begin = time.perf_counter()
            extract_features(backbone, batches, cache=folder)
            return (time.perf_counter() - begin) / self.steps / len(self.batch[0])


def rows(bench: Bench, rounds: int) -> list[Row]:
    """Training and extraction as ratios of images per second; 1 is as fast as the loop."""
    found = []
    sides = {"training": (bench.training, bench.training_loop, ">= 0.95"), "extraction": (bench.extraction, bench.extraction_loop, "")}
    for what, (ours, loop, target) in sides.items():
        rates = {"ftlit": lambda run=ours: 1 / run(), "loop": lambda run=loop: 1 / run()}
        measure = f"{what}: images per second, {bench.name}, {bench.precision}, batches of {len(bench.batch[0])}"
        found.append(compared(measure, in_turn(rates, rounds), "ftlit", "loop", target, unit="img/s"))  # type: ignore[arg-type]
    return found


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given, after each network and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=several("network", NETWORKS), default=["resnet50", "vit_b_16"])
    parser.add_argument("--batches", type=lambda text: [count(word) for word in text.split(",")], default=[32, 256])
    for name, default in (("steps", 20), ("size", 224), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=count, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    found: list[Row] = []
    for name in given.networks:
        for batch in given.batches:
            found += rows(Bench(name, batch, given.steps, given.size, torch.device(given.device)), given.rounds)
            if given.out:
                written(given.out, machine(), {key: value for key, value in vars(given).items() if key != "out"}, found)
    print(table(found))


if __name__ == "__main__":
    main()
