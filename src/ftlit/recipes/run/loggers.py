"""Build the loggers of a config, and connect them before anything is written or trained."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ftlit.errors import UserError, one_line
from ftlit.lit.callbacks.metrics_file import MetricsFile
from ftlit.recipes.config.hydra_internals import instantiate

PACKAGES = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # class -> package, and extra of ftlit
RESULT = "result"  # in front of the metrics of the result on val, in loggers other than `metrics.csv`


def build_loggers(loggers: DictConfig) -> list[Logger]:
    """Build the loggers of a config.

    Args:
        loggers: name -> logger; an empty one is left out.

    Raises:
        UserError: a package is missing (the message names the extra that installs it), or a logger refuses its arguments.
    """
    built = []
    for name, node in loggers.items():
        if not node:
            continue
        package = PACKAGES.get(str(node.get("_target_")).rpartition(".")[2])
        if package and find_spec(package) is None:
            raise UserError(f'logger.{name!s} needs the package {package}: pip install "ftlit[{package}]"')
        try:
            built.append(instantiate(node))
        except Exception as error:
            cause = error.__cause__ or error
            raise UserError(f"logger.{name!s} cannot be built: {type(cause).__name__}: {one_line(cause)}") from error
    return built


def begin_loggers(loggers: Iterable[Logger], *, again: bool) -> None:
    """Connect each logger, so that a server that does not answer or a missing login is found now. `metrics.csv` waits for its first row.

    Args:
        loggers: of the trainer.
        again: whether a run is resumed from its beginning: it replaces its own rows, without a warning.

    Raises:
        UserError: a logger cannot connect; with its own reason.
    """
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            if again:
                logger.continue_after(0, None)
            continue
        try:
            connect(logger)
        except Exception as error:
            raise UserError(f"{type(logger).__name__} cannot connect: {one_line(error)}") from error


def connect(logger: Logger) -> object:
    """The object that a logger writes to; Lightning's loggers open it on the first access."""
    return logger.experiment  # type: ignore[attr-defined]


@contextmanager
def logged_to(trainer: Trainer, loggers: Sequence[Logger]) -> Iterator[None]:
    """Log to these loggers only, for a block."""
    before, trainer.loggers = trainer.loggers, list(loggers)
    try:
        yield
    finally:
        trainer.loggers = before


def log_result(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Log the result on val to all loggers but `metrics.csv`, under names of its own: it is no further epoch in the curve of the epochs."""
    for logger in trainer.loggers:
        if not isinstance(logger, MetricsFile):
            logger.log_metrics({f"{RESULT}/{name}": value for name, value in metrics.items()}, step=trainer.global_step)
