"""The table of layers in the plan."""

from collections.abc import Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ftlit.errors import shorten
from ftlit.finetuning.plan import Plan


def layers_table(plan: Plan) -> Table:
    """A row per layer, top first: first stage that trains it, mode and batch norm by stage, parameter groups, base rates."""
    table = Table("layer", "parameters", "trains from", "mode by stage", "batch norm by stage", "group", "base rate", box=SIMPLE_HEAD)
    for row in reversed(plan.rows):
        table.add_row(
            row.layer,
            f"{row.size:,}",
            "-" if row.first is None else f"stage {row.first}",
            _by_stage(row.modes) if row.size else "-",
            _by_stage(row.batchnorm) or "-",
            shorten(row.groups, most=3),
            " ".join(f"{rate:.1e}" for rate in row.rates),
        )
    return table


def _by_stage(values: Sequence[str]) -> str:
    """`eval 0-1, train 2`."""
    runs = [(value, [i for i, _ in same]) for value, same in groupby(enumerate(values), key=lambda pair: pair[1])]
    return ", ".join(f"{value} {places[0]}" + (f"-{places[-1]}" if len(places) > 1 else "") for value, places in runs)
