"""The process of one system: reads tasks as lines of JSON and writes one line of JSON per result.

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
    "ftlit scenario=auto": ("with_ftlit", "auto"),
    "ftlit recipe=probe": ("with_ftlit", "probe"),
    "BackboneFinetuning": ("with_lightning", "backbone_finetuning"),
    "finetuning-scheduler": ("with_lightning", "finetuning_scheduler"),
    "fastai": ("with_fastai", "fine_tune"),
    "PyTorch loop": ("with_pytorch", "loop"),
    "scikit-learn on features": ("with_pytorch", "features"),
    "from scratch": ("with_pytorch", "scratch"),
}


def main() -> None:
    """Warm up, report that the system is ready, and run tasks until the input ends."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the results
    module, function = SYSTEMS[sys.argv[1]]
    work = getattr(import_module(f"systems.{module}"), function)
    torch.nn.functional.conv2d(torch.zeros(8, 3, 64, 64), torch.zeros(8, 3, 3, 3))
    print(json.dumps({"ready": sys.argv[1]}), file=results, flush=True)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(task.seed)
        begun = time.perf_counter()
        try:
            result = {"accuracy": work(task), "seconds": time.perf_counter() - begun}
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    main()
