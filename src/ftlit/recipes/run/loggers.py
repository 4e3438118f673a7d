"""The loggers that a run asks for: built, and begun before anything is written or trained."""

from collections.abc import Iterable
from importlib.util import find_spec

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ftlit.errors import UserError, one_line
from ftlit.lit.callbacks.exact_resume import MetricsFile
from ftlit.recipes.config.hydra_internals import instantiate

PACKAGES = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # -> the package, and the extra


def build_loggers(loggers: DictConfig) -> list[Logger]:
    """The loggers of a config, by its names for them.

    Raises:
        UserError: one's package is missing (with the extra that brings it), or it refuses what it was given.
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
            raise UserError(f"logger.{name!s}: {one_line(error.__cause__ or error)}") from error
    return built


def begin_loggers(loggers: Iterable[Logger]) -> None:
    """Reach for what each writes to: a server that does not answer, a login that is missing. `metrics.csv` waits for its first row.

    Raises:
        UserError: with the logger's own reason.
    """
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            continue
        try:
            _ = logger.experiment  # type: ignore[attr-defined]
        except Exception as error:
            raise UserError(f"{type(logger).__name__} cannot begin: {one_line(error)}") from error
