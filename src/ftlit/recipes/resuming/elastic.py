"""Resume a run with another number of processes: the global batch, and with it the order of the images, stays as it was.

Rank `r` of W reads every W-th image of an order that depends on the seed and the epoch only (`ftlit.data.samplers.TrainOrder`), so that W
processes with batches of N / W read in each step what one process with batches of N reads. Nothing in a checkpoint belongs to a process:
the position in the epoch is a number of global batches, and random numbers are functions of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, shorten
from ftlit.formatting import count
from ftlit.recipes.resuming.settings import Change, stable_settings

BATCH_SIZE = "data.batch_size"
NUMBER_OF_PROCESSES = ("trainer.devices", "trainer.num_nodes")
OF_PROCESSES = (*NUMBER_OF_PROCESSES, "trainer.strategy", "trainer.accelerator")
ELASTIC_RECIPE = "finetune"  # pretraining layer by layer takes one process
REPLICATING = ("auto", "ddp")  # beginnings of names of strategies under which each process holds all weights


@dataclass(frozen=True)
class InitialProcesses:
    """Processes and batches with which a run began.

    Args:
        settings: of the run, see `stable_settings`.
        processes: how many it began with.
    """

    settings: DictConfig
    processes: int

    @property
    def batch(self) -> int:
        """Images of a batch in all processes together."""
        return int(OmegaConf.select(self.settings, BATCH_SIZE)) * self.processes

    def restored_in(self, cfg: DictConfig) -> DictConfig:
        """A copy of the config of the resumed run with the processes and batches of the run's beginning.

        What has not changed stays as it is: `settings` name no modules.
        """
        settings, now = cfg.copy(), stable_settings(cfg)
        for name in (*OF_PROCESSES, BATCH_SIZE):
            value = OmegaConf.select(self.settings, name)
            if value is not None and value != OmegaConf.select(now, name):
                OmegaConf.update(settings, name, value, force_add=True)
        return settings


def processes_of(cfg: DictConfig) -> int:
    """The processes of the trainer of a config, before it is built: one for each device, on all machines."""
    devices, nodes = cfg.trainer.get("devices", "auto"), int(cfg.trainer.get("num_nodes") or 1)
    if OmegaConf.is_list(devices):
        here = len(devices)
    elif str(devices) in ("auto", "-1"):
        here = _all_devices(str(cfg.trainer.get("accelerator", "auto")))
    else:
        text = str(devices)
        here = len([part for part in text.split(",") if part]) if "," in text else int(text)
    return here * nodes


def _all_devices(accelerator: str) -> int:
    import torch  # here, so that --help stays fast

    return torch.cuda.device_count() if _device_type(accelerator) == "cuda" else 1


def _device_type(accelerator: str) -> str:
    from ftlit.models.precision import device_of  # here, so that --help stays fast

    return device_of(accelerator).type


def keep_batch(cfg: DictConfig, began: InitialProcesses, changed: Sequence[Change]) -> list[Change]:
    """Adapt `data.batch_size` of a run that is resumed to its number of processes, in place, so that the global batch stays.

    Args:
        cfg: of the resumed run.
        began: how it began.
        changed: its changed settings.

    Returns:
        The changed settings that do not only come from other processes.

    Raises:
        UserError: the processes cannot share the global batch evenly, or another batch size is given; another number of processes in a
            run that is not elastic.
    """
    if cfg.recipe != ELASTIC_RECIPE or not _is_elastic(began.settings) or not _is_elastic(cfg):
        return _without_number(cfg, began, changed)
    now, given, before = processes_of(cfg), cfg.data.batch_size, OmegaConf.select(began.settings, BATCH_SIZE)
    others = [change for change in changed if not _is_of_processes(change)]
    if now == began.processes:
        return others
    OmegaConf.update(cfg, BATCH_SIZE, _share(began, now, given, before))
    return [change for change in others if change.name != BATCH_SIZE]


def _without_number(cfg: DictConfig, began: InitialProcesses, changed: Sequence[Change]) -> list[Change]:
    """The changed settings of a run that is not elastic, but for another way to give the same number of processes."""
    others = [change for change in changed if change.name.partition("[")[0] not in NUMBER_OF_PROCESSES]
    if others or (now := processes_of(cfg)) == began.processes:
        return others
    raise UserError(
        f"{count(now, 'process')} cannot resume this run, which began with {began.processes}: give {count(began.processes, 'process')} "
        "(trainer.devices=...). Another number needs recipe=finetune, trainer.strategy=auto or ddp, and data that has the option batch_size"
    )


def _share(began: InitialProcesses, now: int, given: int, before: int) -> int:
    """The batch size of each of `now` processes."""
    processes, share = count(now, "process"), began.batch // now
    if began.batch % now:
        fitting = shorten((str(number) for number in range(1, began.batch + 1) if began.batch % number == 0), most=8)
        raise UserError(
            f"this run began with a global batch of {began.batch} ({count(began.processes, 'process')}, {BATCH_SIZE}={before}), which "
            f"{processes} cannot share evenly: resume it with {fitting} processes (trainer.devices=...)"
        )
    if given not in (before, share):
        raise UserError(
            f"{BATCH_SIZE}={given} in {processes} is a global batch of {given * now}, but this run began with {began.batch}: "
            f"leave {BATCH_SIZE} out, or give {BATCH_SIZE}={share}"
        )
    return share


def _is_elastic(settings: DictConfig) -> bool:
    """Whether each process holds all weights, and the size of its batches is a setting."""
    strategy = OmegaConf.select(settings, "trainer.strategy", default="auto")
    return _replicates(strategy) and isinstance(OmegaConf.select(settings, BATCH_SIZE), int)


def _replicates(strategy: object) -> bool:
    return isinstance(strategy, str) and strategy.startswith(REPLICATING)


def _is_of_processes(change: Change) -> bool:
    """Whether a changed setting is the number of processes, or follows from it. A device of another kind computes other bits."""
    if change.name == "trainer.accelerator":
        return _device_type(str(change.before)) == _device_type(str(change.now))
    return change.name.partition("[")[0] in OF_PROCESSES and change.before is not None


def describe_change(cfg: DictConfig, began: InitialProcesses | None) -> str:
    """What the plan says of a run that is resumed with another number of processes; empty with the same number."""
    if began is None or (now := processes_of(cfg)) == began.processes:
        return ""
    text = (
        f"resumed with {count(now, 'process')}; the run began with {began.processes}: same order of images, "
        f"batch {cfg.data.batch_size} per process (global batch {began.batch})"
    )
    return f"{text}; data.mix={cfg.data.mix} mixes other pairs of images" if cfg.data.get("mix", "none") != "none" else text
