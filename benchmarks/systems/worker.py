"""One system in a process of its own: tasks come in as lines of JSON, what came of each goes out as one.

python -m systems.worker NAME
"""

import json
import os
import random
import sys
import time
import traceback
from importlib import import_module

import numpy as np
import torch

from systems.task import Task

SYSTEMS = {  # name -> module, function
    "ftlit scenario=auto": ("ours", "auto"),
    "ftlit recipe=probe": ("ours", "probe"),
    "BackboneFinetuning": ("with_lightning", "backbone_finetuning"),
    "finetuning-scheduler": ("with_lightning", "finetuning_scheduler"),
    "fastai": ("with_fastai", "fine_tune"),
    "loop by hand": ("by_hand", "loop"),
    "scikit-learn on features": ("by_hand", "features"),
    "from scratch": ("by_hand", "scratch"),
}


def main() -> None:
    """Warm up, say so, and work until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    module, function = SYSTEMS[sys.argv[1]]
    work = getattr(import_module(f"systems.{module}"), function)
    torch.nn.functional.conv2d(torch.zeros(8, 3, 64, 64), torch.zeros(8, 3, 3, 3))
    print(json.dumps({"ready": sys.argv[1]}), file=answers, flush=True)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(task.seed)
        begun = time.perf_counter()
        try:
            said = {"accuracy": work(task), "seconds": time.perf_counter() - begun}
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
