"""What ftlit adds to training: time and memory of a step beside a loop written by hand, and beside BackboneFinetuning; start-up.

python tests/bench/overhead.py [--rounds 5] [--steps 8] [--accelerator cpu|gpu] [--out results/overhead.json]

resnet18 with random weights, batches of 32 random images of 224 pixels, AdamW. Each side runs in a process of its own, all sides in turn;
the first steps are not counted. Memory is the most that the process has held, on a GPU the most that was allocated.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import Row, compared, in_turn, machine, table, timed, written
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

BATCH, CLASSES, WARM = 32, 10, 2
ROOT = Path(__file__).parents[2]
Optimizer = partial(torch.optim.AdamW, lr=1e-4)


def by_hand(loader: DataLoader, device: torch.device) -> list[float]:
    """Full fine-tuning, as most write it."""
    network = resnet18(num_classes=CLASSES).to(device)
    optimizer, seconds = Optimizer(network.parameters()), []
    for images, labels in loader:
        begun = time.perf_counter()
        loss = nn.functional.cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(_since(begun, device))
    return seconds


def ours(loader: DataLoader, device: torch.device, *, stage: str = "*") -> list[float]:
    """FineTuner with StagedFinetuning: everything, or the head alone, trains."""
    from ftlit import FineTuner, LinearHead, Schedule, Stage, StagedFinetuning, load_backbone

    backbone = load_backbone("resnet18", weights=None)
    model = FineTuner(backbone, LinearHead(backbone.num_features, CLASSES), num_classes=CLASSES, optimizer=Optimizer)
    return _fitted(model, loader, device, StagedFinetuning(Schedule([Stage([stage])])))


def backbone_finetuning(loader: DataLoader, device: torch.device) -> list[float]:
    """Lightning's callback at its defaults, before it unfreezes."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import BackboneFinetuning

    class Network(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = resnet18(num_classes=CLASSES)
            self.backbone.fc = nn.Identity()
            self.head = nn.Linear(512, CLASSES)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return Optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])

    return _fitted(Network(), loader, device, BackboneFinetuning())


def _fitted(model: Any, loader: DataLoader, device: torch.device, callback: Any) -> list[float]:
    import lightning.pytorch as pl

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_batch_start(self, *_: Any) -> None:
            self.begun = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            self.seconds.append(_since(self.begun, device))

    clock = Clock()  # the first and the last callback: what others do counts
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, callbacks=[clock, callback], **quiet
    )
    trainer.fit(model, loader)
    return clock.seconds


SIDES = {
    "by hand": by_hand,
    "ftlit": ours,
    "ftlit, head stage": partial(ours, stage="head"),
    "BackboneFinetuning, head stage": backbone_finetuning,
}


def _since(begun: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def side(name: str, steps: int, accelerator: str) -> None:
    """One side in this process: seconds of its steps and bytes at the peak, as JSON."""
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn((WARM + steps) * BATCH, 3, 224, 224), torch.arange((WARM + steps) * BATCH) % CLASSES)
    before = _peak(device)
    seconds = SIDES[name](DataLoader(data, BATCH), device)[WARM:]
    print(json.dumps({"seconds": sum(seconds) / len(seconds), "peak": _peak(device), "before": before}))


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start_up(rounds: int) -> list[Row]:
    """`import ftlit`, and the help, beside `import torch`."""
    commands = {
        "import torch": ["-c", "import torch"],
        "import ftlit": ["-c", "import ftlit"],
        "train.py --help": [str(ROOT / "train.py"), "--help"],
    }
    runs = {name: partial(subprocess.run, [sys.executable, *words], check=True, capture_output=True) for name, words in commands.items()}
    sides = {name: partial(timed, run) for name, run in runs.items()}
    in_turn(sides, 1)  # what lies on the disk is read once
    samples = in_turn(sides, rounds)
    return [compared(f"{name} over import torch", samples, name, "import torch", "") for name in ("import ftlit", "train.py --help")]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/overhead.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        return side(given.side, given.steps, given.accelerator)
    peaks: dict[str, list[float]] = {name: [] for name in SIDES}

    def run(name: str) -> float:
        command = [sys.executable, __file__, "--side", name, "--steps", str(given.steps), "--accelerator", given.accelerator]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        peaks[name].append(said["peak"] / 1e9)
        return float(said["seconds"])

    samples = in_turn({name: partial(run, name) for name in SIDES}, given.rounds)
    rows = []
    for what, values, unit in (("a step", samples, "s"), ("memory at its peak", peaks, "GB")):
        rows.append(compared(f"all trains: {what}, ftlit over by hand", values, "ftlit", "by hand", "<= 1.03", unit=unit))
        pair = ("ftlit, head stage", "BackboneFinetuning, head stage")
        rows.append(compared(f"the head trains: {what}, ftlit over BackboneFinetuning", values, *pair, "", unit=unit))
    rows += start_up(given.rounds)
    given.out.parent.mkdir(exist_ok=True)
    written(given.out, machine(), {"rounds": given.rounds, "steps": given.steps, "accelerator": given.accelerator}, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
