"""Processes that torchrun or srun has started side by side: they become the processes of one run."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ftlit.errors import UserError
from ftlit.files import WriteError
from ftlit.recipes.config.error_messages import as_user_error
from ftlit.recipes.config.overrides import LAUNCHER_WORDS

if TYPE_CHECKING:
    from ftlit.lit.rank_store import Processes

TORCHRUN, SRUN = "torchrun", "srun"
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which Lightning looks for no tasks either
CONNECT_MINUTES = 10.0  # before the config, and with it rank_timeout, is known
NEEDS_FOLDER = "resume=auto needs a fixed folder, but the default is a new one each time: give hydra.run.dir=runs/NAME"


@dataclass(frozen=True)
class Launched:
    """How a launcher started this process.

    Attributes:
        launcher: `torchrun` or `srun`.
        rank: of this process, from 0.
        count: processes on all machines.
        nodes: machines, with equally many processes.
        leader: rank of the first process on this machine; the own one where processes are not numbered machine by machine.
    """

    launcher: str
    rank: int
    count: int
    nodes: int = 1
    leader: int = 0

    @property
    def devices(self) -> int:
        """Processes on one machine."""
        return self.count // self.nodes


def launched() -> Launched | None:
    """Return how a launcher started this process; `None` without a launcher.

    Raises:
        UserError: the processes cannot be one run.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = _variable("WORLD_SIZE")
        here = _variable("LOCAL_WORLD_SIZE", count)
        found = Launched(TORCHRUN, rank := _variable("RANK"), count, count // here, rank - _variable("LOCAL_RANK", 0))
        uneven = here * found.nodes != count
    elif _variable("SLURM_NTASKS", 1) > 1 and not _is_alone_in_slurm():
        found = _of_srun()
        uneven = len(set(_tasks_per_node())) > 1 or found.devices * found.nodes != found.count
    else:
        return None
    if uneven:
        same = "srun --ntasks-per-node=..." if found.launcher == SRUN else "torchrun the same --nproc-per-node=... on each machine"
        raise UserError(f"{found.launcher} started {found.count} processes, but not the same number on each machine: give {same}")
    return found


def _variable(name: str, default: int | None = None) -> int:
    """An environment variable that a launcher sets."""
    value = os.environ.get(name, "" if default is None else str(default))
    if not value.isdecimal():
        raise UserError(f"the environment has {name}={value!r}, which is not a whole number: start with torchrun or srun, or unset it")
    return int(value)


def _is_alone_in_slurm() -> bool:
    """Whether Lightning started this process as a further one of a run, or a user started it in the shell of an interactive job."""
    return "LOCAL_RANK" in os.environ or (os.environ.get("SLURM_JOB_NAME") in INTERACTIVE and not _is_task())


def _is_task() -> bool:
    return "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ


def _of_srun() -> Launched:
    count = _variable("SLURM_NTASKS")
    if not _is_task():
        raise UserError(
            f"this SLURM job has {count} tasks, but srun did not start this process: put srun before the command, "
            "or ask for one task (--ntasks=1), or unset SLURM_NTASKS"
        )
    nodes = _variable("SLURM_STEP_NUM_NODES", _variable("SLURM_NNODES", 1))
    rank, local, node = (_variable(f"SLURM_{name}", 0) for name in ("PROCID", "LOCALID", "NODEID"))
    return Launched(SRUN, rank, count, nodes, rank - local if node * (count // nodes) + local == rank else rank)


def _tasks_per_node() -> list[str]:
    """Return the numbers of tasks per machine, without repetition factors: SLURM writes `2(x3),1`."""
    return re.sub(r"\(x\d+\)", "", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")).split(",")


def complete(words: Sequence[str]) -> list[str]:
    """Complete a command line, so that the processes of a launcher become one run: add their number, and one folder for all.

    Raises:
        UserError: the command line gives another number of processes, or it is a sweep, which starts the processes of its jobs itself.
    """
    own = launched()
    if own is None:
        return list(words)
    if own.launcher == SRUN:
        os.environ["SLURM_NTASKS_PER_NODE"] = str(own.devices)  # Lightning asks for it; the job's may differ from that of this step
    given = dict(word.lstrip("+").partition("=")[::2] for word in words)
    if {"-m", "--multirun"} & set(words) or given.get("hydra.mode") == "MULTIRUN":
        if own.count == 1:
            return list(words)
        raise UserError(
            f"a sweep starts the processes of its jobs itself: leave {own.launcher} out, and give trainer.devices={own.devices}"
        )
    for name, number in (("trainer.devices", own.devices), ("trainer.num_nodes", own.nodes)):
        if _number(given.get(name, "auto")) not in (None, number):
            raise UserError(f"{name}={given[name]}, but {own.launcher} started the processes for {name}={number}: leave {name} out")
    added = [f"++trainer.devices={own.devices}"] if _number(given.get("trainer.devices", "auto")) is None else []
    added += [f"++trainer.num_nodes={own.nodes}"] if own.nodes > 1 and "trainer.num_nodes" not in given else []
    LAUNCHER_WORDS[:] = added
    if own.count > 1 and "hydra.run.dir" not in given:
        if given.get("resume") == "auto":
            raise UserError(NEEDS_FOLDER)
        added.append("hydra.run.dir=${paths.runs}/" + agreed("folder", lambda: f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"))
    return [*words, *added]


def _number(devices: str) -> int | None:
    """Return the number of devices in a value of the command line; `None`: all devices."""
    if devices.startswith("["):
        return len(devices.split(","))
    return int(devices) if devices.isdecimal() else None


def agreed(name: str, decide: Callable[[], str]) -> str:
    """Call `decide` in the first of the launched processes, and return its result in all of them. A single process calls it itself.

    Args:
        name: of the result in the store; each may be used once.
        decide: called in the first process.
    """
    own = launched()
    if own is None or own.count == 1:
        return decide()
    processes = _joined(own)
    if own.rank == 0:
        processes.store.set(name, decide())
    return processes.value(name, 0, CONNECT_MINUTES)


def _joined(own: Launched) -> "Processes":
    """The processes of a launcher. Under srun the first one holds their store."""
    from ftlit.lit.rank_store import join  # here, so that --help stays fast

    if own.launcher == SRUN:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        environment = SLURMEnvironment(auto_requeue=False)
        os.environ.update(MASTER_ADDR=environment.main_address, MASTER_PORT=str(environment.main_port))
    return join(own.rank, own.count, CONNECT_MINUTES)


def _is_started_by_lightning() -> bool:
    """Whether this is a further process of a run on one machine, or on the first one."""
    return bool(int(os.environ.get("LOCAL_RANK", 0))) and os.environ.get("NODE_RANK") == "0" and "MASTER_PORT" in os.environ


def print_once(text: str, error: UserError) -> None:
    """Print the error that ends this process on stderr. An error that several processes have alike is printed by one of them.

    Before the processes have joined, errors follow from the command line and the files of a machine: one process on each prints them.

    Args:
        text: the whole line.
        error: of this process.
    """
    store = sys.modules.get("ftlit.lit.rank_store")  # imported by the first process that joins
    joined = store.JOINED if store else []
    if joined:
        is_first = joined[0].is_first_with(str(error))
    else:
        of_one_process = isinstance(error, WriteError) or (store and isinstance(error, store.LostProcess))
        is_first = of_one_process or is_first_on_machine()
    if is_first:
        print(text, file=sys.stderr, flush=True)
    for processes in joined:
        processes.leave()


def own_rank() -> int:
    """The rank of this process, also before Lightning, which knows it, is imported; 0 for a process started by hand."""
    if "lightning.pytorch" in sys.modules:
        from ftlit.lit.trainer_internals import rank_before_trainer

        return rank_before_trainer()
    own = launched()
    return own.rank if own else int(os.environ.get("LOCAL_RANK", 0))


def is_first_on_machine() -> bool:
    """Whether a launcher started this process as the first on its machine, or there is no launcher."""
    name = "LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_LOCALID"
    return os.environ.get(name, "0") == "0" or (name == "SLURM_LOCALID" and _is_alone_in_slurm())


def check_alone(recipe: str) -> None:
    """Reject several processes for a recipe that runs in one."""
    own = launched()
    if own and own.count > 1:
        raise UserError(f"recipe={recipe} runs in one process, but {own.launcher} started {own.count}: leave {own.launcher} out")


@contextmanager
def first_ahead(name: str, minutes: float) -> Iterator[None]:
    """Run a block in the first of the launched processes before the others, which wait for its end; then in the first of each other machine
    before those on the same one.

    A process that no launcher started runs it at once.

    Args:
        name: of the block; each may be used once.
        minutes: longest time that the others wait without a report of the first process.
    """
    from ftlit.lit.rank_store import join  # here, so that --help stays fast

    own = launched()
    if own is None or own.count == 1:
        if _is_started_by_lightning():  # the first process waits for this one soon, as long as it reports
            join(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]), CONNECT_MINUTES)
        yield
        return
    processes = _joined(own)
    with processes.ahead(name, minutes), processes.ahead(f"{name} on machine of {own.leader}", minutes, own.leader):
        try:
            yield
        except Exception as error:
            if user_error := as_user_error(error):  # the others end with it too
                raise user_error from error
            raise
