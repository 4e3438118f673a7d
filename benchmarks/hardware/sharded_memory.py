"""Memory of sharded training: bytes of parameters, gradients and optimizer state in each process, measured and predicted.

python benchmarks/hardware/sharded_memory.py [--network vit_b_16] [--processes 1 2 4] [--out FILE.json]
python benchmarks/hardware/sharded_memory.py --paper --processes 8

Random weights, two classes, a step of AdamW on all parameters with two images in each process, FSDP2 with gloo on the CPU. Measured are the
local shards of DTensors after the step. `--paper` only predicts, for ViT-H/14 and a ViT of 7 billion parameters, which are
built without memory, by the function that the plan of `trainer=fsdp2` uses: all layers, the upper half of the layers, and the head alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

ADAMW = partial(torch.optim.AdamW, lr=1e-4)
PARTS = ("parameters", "gradients", "optimizer")
CLASSES = 2


def tuner(name: str) -> Any:
    """A FineTuner on a network of torchvision with random weights; on the meta device, if that is the default."""
    from ftlit import FineTuner, load_backbone

    backbone = load_backbone(name, weights=None)
    return FineTuner(backbone, nn.Linear(backbone.num_features, CLASSES), num_classes=CLASSES, optimizer=ADAMW)


def measure(name: str, folder: Path) -> None:
    """Train one step in this process and those that Lightning starts; each writes what it holds."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from ftlit import Fsdp2Strategy, Schedule, Stage, StagedFinetuning
    from ftlit.lit.sharding.memory import measured_memory

    class Note(pl.Callback):
        """Note what this process holds after the first step, before its gradients go."""

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 1:
                found = measured_memory(pl_module, trainer.optimizers[0])
                (folder / f"{trainer.global_rank}.json").write_text(json.dumps([getattr(found, part) for part in PARTS]))

    torch.manual_seed(0)
    model = tuner(name)
    images = [(torch.randn(model.backbone.input_spec.shape), index % CLASSES) for index in range(4 * int(os.environ["DEVICES"]))]
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        strategy=Fsdp2Strategy(),
        accelerator="cpu",
        devices=int(os.environ["DEVICES"]),
        max_steps=2,
        callbacks=[StagedFinetuning(Schedule([Stage(["*"])])), Note()],
        **quiet,
    )
    trainer.fit(model, DataLoader(images, batch_size=2))


def measured(name: str, processes: int) -> dict[str, int]:
    """Bytes in the process that holds most."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--network", name, "--inside", folder]
        subprocess.run(command, env={**os.environ, "DEVICES": str(processes)}, check=True, capture_output=True)
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    if len(found) != processes:
        raise RuntimeError(f"{len(found)} of {processes} processes measured their memory")
    return {part: max(values) for part, *values in zip(PARTS, *found, strict=True)}


def predicted(module: nn.Module, units: Sequence[str], trains: Sequence[str], processes: int) -> dict[str, int]:
    """The prediction of the plan.

    Args:
        module: whole, or on the meta device.
        units: names of the modules that are gathered as a whole.
        trains: beginnings of the names of parameters that train.
        processes: number of processes.
    """
    from ftlit.lit.sharding.memory import process_memory

    parameters = dict(module.named_parameters())
    names = {name for name in parameters if name.startswith(tuple(trains))}
    found = process_memory(parameters, [names], ADAMW, processes, units)
    assert found is not None
    return {part: getattr(found, part) for part in (*PARTS, "gathered")}


def papers() -> dict[str, tuple[nn.Module, list[str]]]:
    """Networks on the meta device with a new head, and the names of their blocks."""
    import timm
    import torchvision

    with torch.device("meta"):
        huge = torchvision.models.vit_h_14(weights=None)
        huge.heads = nn.Linear(1280, CLASSES)
        seven = timm.create_model("vit_7b_patch16_dinov3", pretrained=False, num_classes=CLASSES)
    return {
        "vit_h_14": (huge, [f"encoder.layers.encoder_layer_{index}" for index in range(32)]),
        "vit_7b": (seven, [f"blocks.{index}" for index in range(40)]),
    }


def paper(processes: int) -> list[dict[str, Any]]:
    """What each of these processes would hold, by what trains."""
    rows = []
    for name, (module, blocks) in papers().items():
        head = ["head."] if name == "vit_7b" else ["heads."]
        upper = [f"{block}." for block in blocks[len(blocks) // 2 :]]
        for what, trains in {"all layers": [""], "upper half of the blocks": [*upper, *head], "head": head}.items():
            own = {"network": name, "trains": what, "processes": processes}
            rows.append({**own, **predicted(module, [*blocks, head[0][:-1]], trains, processes)})
    return rows


def main() -> None:
    """Print a table in MB, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="vit_b_16")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        measure(given.network, given.inside)
        return
    rows: list[dict[str, Any]] = []
    for processes in given.processes:
        if given.paper:
            rows += paper(processes)
            continue
        model, own = tuner(given.network), {"network": given.network, "processes": processes}
        units = [*(f"backbone.{cut}" for cut in model.backbone.cuts), "head"]
        rows.append({**own, "kind": "measured", **measured(given.network, processes)})
        rows.append({**own, "kind": "predicted", **predicted(model, units, [""], processes)})
    for row in rows:
        print("  ".join(f"{value / 1e6:,.1f} MB" if key in (*PARTS, "gathered") else str(value) for key, value in row.items()))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
