"""What training a part of each layer costs: head, biases, norms and LoRA against all layers, on ViT-S/16 at 224 pixels.

python benchmarks/hardware/layer_parts.py [--rounds 3] [--batches 1,8,32] [--out benchmarks/results/layer_parts.json]

Bytes are counted, not measured: gradients and the state of AdamW, and with them the weights and the tensors that a step keeps for its
backward pass (the memory of a step). On one thread the times are CPU times. The sides alternate in one process.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch
from _measure import in_turn, machine, median, written
from _options import count
from torch import Tensor, nn

from ftlit import Schedule, add_lora, build_optimizer, load_timm, set_trainable
from ftlit.finetuning.presets import all_at_once, bias_only, head_only, lora, norm_only

NETWORK, CLASSES, SIZE = "vit_small_patch16_224", 100, 224
ALL = "all layers"
SCHEDULES = {"head": head_only, "biases": bias_only, "norms": norm_only, "LoRA": lora, ALL: all_at_once}


class Side:
    """A network whose last stage trains, and its optimizer."""

    def __init__(self, schedule: Schedule) -> None:
        torch.manual_seed(0)
        backbone = load_timm(NETWORK, weights=None)
        if schedule.lora:
            add_lora(backbone, schedule.lora)
        self.net = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(backbone.num_features, CLASSES)})
        set_trainable(self.net, schedule.stages[-1].train)
        self.optimizer = build_optimizer(self.net, partial(torch.optim.AdamW, lr=1e-4), schedule.lr_scale)
        self.kept = 0  # bytes that the last step kept for its backward pass

    def step(self, images: Tensor) -> float:
        """The seconds of a step for each image."""
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        weights = {tensor.untyped_storage().data_ptr() for tensor in self.net.state_dict().values()}
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        begin = clock()
        self.optimizer.zero_grad()
        backbone: Any = self.net["backbone"]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.net["head"](backbone.pool(backbone(images))).square().mean().backward()
        self.optimizer.step()
        self.kept = sum(storages.values())
        return (clock() - begin) / len(images)

    def trained_bytes(self) -> int:
        """Of gradients and optimizer state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*states, *(p.grad for p in self.net.parameters() if p.grad is not None)]
        return sum(tensor.nbytes for tensor in tensors)


def rows(batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """For each side the bytes of gradients and optimizer state, and by batch size the bytes of a step and its seconds for each image."""
    layers = load_timm(NETWORK, weights=None).layers_with_parameters
    sides = {name: Side(make(layers)) for name, make in SCHEDULES.items()}
    found: dict[str, dict[str, Any]] = {name: {"part": name, "memory": {}, "seconds": {}} for name in SCHEDULES}
    for batch in batches:
        images = torch.rand(batch, 3, SIZE, SIZE)
        for side in sides.values():
            side.step(images)  # warms up, and makes the state of the optimizer
        times = in_turn({name: partial(side.step, images) for name, side in sides.items()}, rounds)
        for name, side in sides.items():
            weights = sum(tensor.nbytes for tensor in side.net.state_dict().values())
            found[name]["trained"] = side.trained_bytes()
            found[name]["memory"][str(batch)] = weights + side.trained_bytes() + side.kept
            found[name]["seconds"][str(batch)] = median(times[name])
    return list(found.values())


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows, and times as ratios to training all layers."""
    batches = list(found[0]["memory"])
    whole = next(row for row in found if row["part"] == ALL)
    of_batches = [f"{what}, batch {batch}" for what in ("memory of a step", "time of a step") for batch in batches]
    lines = [f"| trains | gradients and optimizer state | {' | '.join(of_batches)} |", f"|{'---|' * (2 + len(of_batches))}"]
    for row in found:
        cells = [f"{row['memory'][batch] / 1e6:,.0f} MB" for batch in batches]
        cells += [f"{row['seconds'][batch] / whole['seconds'][batch]:.2f}" for batch in batches]
        trained = f"{row['trained'] / 1e6:.3g} MB ({row['trained'] / whole['trained']:.4f})"
        lines.append(f"| {row['part']} | {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Any = None) -> None:
    """Measure, print the table, and write it if `--out` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--batches", type=lambda text: [count(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = rows(given.batches, given.rounds)
    print(table(found))
    if given.out:
        written(given.out, machine(("timm",)), {"rounds": given.rounds, "batches": given.batches}, found)


if __name__ == "__main__":
    main()
