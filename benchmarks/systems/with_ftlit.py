"""ftlit: `python train.py scenario=auto`, in this process."""

import json
import tempfile
from pathlib import Path

from hydra import compose

from ftlit.recipes import advise, finetune
from ftlit.recipes import probe as probes
from ftlit.recipes.config.hydra_internals import fresh_hydra, use_hydra_config
from ftlit.recipes.processes.process_state import job_state
from systems.task import Task


def auto(task: Task) -> float:
    """Test accuracy of the command with an empty cache, and without the report, which no other system creates."""
    return run(task, "scenario=auto")


def probe(task: Task) -> float:
    """Test accuracy of `recipe=probe`: the best of all cuts."""
    return run(task, "recipe=probe")


def run(task: Task, *more: str) -> float:
    """Test accuracy of the command with further overrides."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"backbone={task.backbone}",
            "data=folder",
            f"data.root={task.root}",
            "trainer=cpu",
            "report=false",
            f"seed={task.seed}",
        ]
        overrides += [f"backbone.weights={task.weights}"] if task.weights else []
        overrides += [f"trainer.max_epochs={task.epochs}"] if task.epochs else []
        overrides += [] if task.flips else ["data.augment=none"]
        overrides += [f"paths.run={folder}/run", f"cache.folder={folder}/store", *more]
        with fresh_hydra():
            cfg = compose("train", overrides=overrides, return_hydra_config=True)
            cfg.hydra.job.num, cfg.hydra.runtime.output_dir = 0, f"{folder}/run"
            with use_hydra_config(cfg), job_state():
                if cfg.recipe == "probe":
                    probes.run(cfg)
                else:
                    finetune.run(advise.resolve_auto(cfg))
        found = json.loads(Path(folder, "run/result.json").read_text())
        return float((found[0] if isinstance(found, list) else found)["test/accuracy"])
