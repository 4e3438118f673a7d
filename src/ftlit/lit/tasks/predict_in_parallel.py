"""Predict in several processes, each on its own device."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from ftlit.errors import UserError, one_line
from ftlit.formatting import count
from ftlit.inference.network import Network
from ftlit.inference.network_inputs import NamedInput
from ftlit.inference.predict import loader_of, predict_batch, rows_of
from ftlit.inference.prediction import PredictionRow
from ftlit.models.precision import device_of, precision_for


class _Predictor(pl.LightningModule):
    """Collects the rows of batches."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.backbone, self.head, self.network = network.backbone, network.head, network
        self.rows: list[PredictionRow] = []

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        """See `ftlit.inference.predict.predict_batch`."""
        self.rows += predict_batch(self.network, batch)


def rows_of_all(
    network: Network, examples: Collection[NamedInput], batch_size: int, workers: int | None, devices: int
) -> Iterable[PredictionRow] | None:
    """Predict examples in `devices` processes, or in as many as there are examples if these are fewer.

    Args:
        network: predicts.
        examples: images or texts.
        batch_size: examples in a batch of one process.
        workers: processes that load, for each process that predicts; `None`: see `default_workers`.
        devices: number of processes. On a CPU they share its cores.

    Returns:
        A row for each example, in order, in the first process; `None` in the others.

    Raises:
        UserError: there are fewer devices.
    """
    if (devices := min(devices, len(examples))) <= 1:
        return rows_of(network, examples, batch_size, workers)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = _trainer(devices)
    loader = loader_of(network, list(examples), batch_size, workers, devices)
    predictor = _Predictor(replace(network, precision=precision_for(network.backbone, device_of(trainer.strategy.root_device.type))))
    trainer.predict(predictor, loader, return_predictions=False)
    gathered: list[list[PredictionRow]] = [[]] * trainer.world_size
    torch.distributed.all_gather_object(gathered, predictor.rows)
    if not trainer.is_global_zero:
        return None
    processes = len(gathered)  # Lightning's sampler gives each of them every processes-th example
    return [gathered[place % processes][place // processes] for place in range(len(examples))]


def _trainer(devices: int) -> pl.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    try:
        return pl.Trainer(devices=devices, strategy="ddp", **silent)  # type: ignore[arg-type]
    except MisconfigurationException as error:
        here = torch.cuda.device_count()
        few = f"this machine has only {count(here, 'GPU')}, so give --devices {here}" if 0 < here < devices else one_line(error)
        raise UserError(f"--devices {devices}: {few}") from error
