"""The jobs into which Hydra's basic sweeper splits a command line; only tests use this internal part of Hydra."""

import re
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from ftlit.recipes.config.hydra_internals import initialize_hydra

INTERVAL = re.compile(r"=(?:tag\(log,)?interval\(([^)]*)\)+$")


def sweep_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job; of an interval, which only a search draws from, both ends."""
    words = [INTERVAL.sub(r"=\1", word) for word in overrides]
    with initialize_hydra():  # glob(...) lists the options of a group
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        batches = BasicSweeper.split_arguments(parser.parse_overrides(words), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]
