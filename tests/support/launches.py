"""train.py in several processes, started as torchrun, srun or Lightning start them."""

import os
import sys
import tempfile
from pathlib import Path

import warm
from paths import ROOT, python_path


def free_port():
    """A port that nobody uses."""
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    return find_free_network_port()


class Program:
    """A program that writes into two files."""

    def __init__(self, command, folder, **settings):
        self.files = [Path(tempfile.mkstemp(dir=folder)[1]) for _ in range(2)]
        with self.files[0].open("w") as out, self.files[1].open("w") as errors:
            self.process = warm.start(command, stdout=out, stderr=errors, start_new_session=True, **settings)
        self.pid, self.send_signal, self.kill = self.process.pid, self.process.send_signal, self.process.kill

    def output(self, timeout=300):
        """Wait for its end. Returns what it printed on stdout and on stderr."""
        self.returncode = self.process.wait(timeout)
        return [file.read_text() for file in self.files]


def start(folder, *words, **environment):
    """Start train.py in its own process group."""
    values = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(folder), **environment}
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu", "data.per_class=4", "report=false", *words]
    return Program(command, folder, cwd=folder, env=values)


def torchrun(folder, port, *words):
    group = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(folder, *words, **group, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


def torchrun_nodes(folders, port, *words, caches=None):
    """Two agents of torchrun as two machines with a process each. Each works in its folder, with its own cache where `caches` are given."""
    agents = []
    for rank, folder in enumerate(folders):
        values = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(folder)}
        values |= {"FTLIT_CACHE": str(caches[rank])} if caches else {}
        place = ("--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}")
        train = (str(ROOT / "train.py"), "trainer=cpu", "report=false", *words)
        agents.append(Program([sys.executable, "-m", "torch.distributed.run", *place, *train], folder, cwd=folder, env=values))
    return agents


def srun(folder, port, *words):
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    ranks = ({"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01")
    return [start(folder, *words, **slurm, **rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in ranks]


def by_lightning(folder, port, *words):
    return [start(folder, "trainer=ddp_cpu", *words)]
