"""Network passes in the default precision and layout against float32 without channels last. Images are in memory; nothing is decoded.

python benchmarks/hardware/passes.py [--rounds 5] [--threads 1] [--out benchmarks/results/passes.json]

The sides alternate in one process. On one thread the times are CPU times, which other programs on the machine hardly change.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
import torchvision
from _measure import Row, compared, in_turn, machine, table, written
from _options import count, several
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ftlit.models.precision import autocast_of, device_of, precision_of

NETWORKS = ("squeezenet1_1", "resnet18", "resnet50", "vit_b_16")
SIZE = 224


def sides(name: str, batch: int, device: str) -> tuple[dict[str, Callable[[], float]], str]:
    """The two sides, each a function that returns the seconds of an image, and the precision of ours."""
    images = torch.rand(batch, 3, SIZE, SIZE, device=device)
    torch.manual_seed(0)
    plain, ours = (getattr(torchvision.models, name)(weights=None).eval().to(device) for _ in range(2))
    ours.to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        plain(images[:1])
    precision = precision_of(device_of(device), counter.get_total_flops())

    def seconds(network: nn.Module, precision: str) -> float:
        clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        with torch.inference_mode(), autocast_of(precision, device):
            begin = clock()
            float(network(images).float().sum())  # waits for the device
            return (clock() - begin) / batch

    return {"ftlit": lambda: seconds(ours, precision), "float32": lambda: seconds(plain, "32-true")}, precision


def rows(networks: Sequence[str], rounds: int, batch: int, device: str) -> list[Row]:
    """A row for each network."""
    found = []
    for name in networks:
        both, precision = sides(name, batch, device)
        in_turn(both, 1)  # warms up
        measure = f"pass of an image, {name}: {precision} with channels last / float32 without"
        target = "<= 0.5" if precision == "bf16-mixed" else "<= 0.83"
        found.append(compared(measure, in_turn(both, rounds), "ftlit", "float32", target))
    return found


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=several("network", NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--batch", type=count, default=32)
    parser.add_argument("--threads", type=count, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    found = rows(given.networks, given.rounds, given.batch, given.device)
    print(table(found))
    if given.out:
        options = {name: value for name, value in vars(given).items() if name != "out"}
        written(given.out, machine(), options, found)


if __name__ == "__main__":
    main()
