"""The table of layers in the plan."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ftlit.errors import shorten
from ftlit.finetuning.plan import Plan

MAX_NAME = 40  # a longer name is folded on a narrow terminal
PREFIX = "backbone."  # of the layers of a FineTuner; a user names them without it


def layers_table(plan: Plan) -> Table:
    """A row per layer, top first: size, learning rate, the stages that train it, and batch norm in these stages. Parameter groups are shown
    if they are not simply the layers. Names and numbers are not broken on a terminal of 80 columns.
    """
    has_norms = any(row.batchnorm for row in plan.rows)
    has_groups = any(row.groups != (row.layer,) for row in plan.rows if row.size)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=min(MAX_NAME, max((len(_short(row.layer)) for row in plan.rows), default=0)))
    for number in ("parameters", "learning rate"):
        table.add_column(number, justify="right", no_wrap=True)
    for text in ("trains in stage", *(["batch norm"] if has_norms else []), *(["group"] if has_groups else [])):
        table.add_column(text, overflow="fold")
    for row in reversed(plan.rows):
        norm, group = row.batchnorm_text, shorten(map(_short, row.groups), most=3)
        optional = [text for text, shown in ((norm, has_norms), (group, has_groups)) if shown]
        rates = row.rates_text.replace(", ", "\n")  # a line for each rate, because the column is narrow
        table.add_row(_short(row.layer), f"{row.size:,}", rates, row.stages_text, *optional)
    return table


def _short(name: str) -> str:
    return name.removeprefix(PREFIX)
