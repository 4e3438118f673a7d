"""The table of layers in the plan."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ftlit.errors import shorten
from ftlit.finetuning.plan import LayerRow, Plan

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
        norm, group = batchnorm_text(row), shorten(map(_short, row.groups), most=3)
        optional = [text for text, shown in ((norm, has_norms), (group, has_groups)) if shown]
        rates = " ".join(f"{rate:.1e}" for rate in row.rates) if row.first is not None else "-"
        table.add_row(_short(row.layer), f"{row.size:,}", rates, stages_text(row), *optional)
    return table


def stages_text(row: LayerRow) -> str:
    """The stages in which a layer trains: `0-2`, `1 (part), 2`, `never`, or `-` for a layer without parameters."""
    if not row.size:
        return "-"
    runs = [(mode, stages) for mode, stages in _runs(row.modes) if mode != "eval"]
    return ", ".join(f"{stages} (part)" if mode == "part" else stages for mode, stages in runs) or "never"


def batchnorm_text(row: LayerRow) -> str:
    """The policy of the batch norms of a layer in the stages that train it, by stage where it changes; `frozen` if none does."""
    if not row.batchnorm:
        return "-"
    while_trained = [policy if mode != "eval" else None for policy, mode in zip(row.batchnorm, row.modes, strict=True)]
    policies = set(while_trained) - {None}
    if len(policies) > 1:
        return ", ".join(f"{policy} in {stages}" for policy, stages in _runs(while_trained) if policy)
    return next(iter(policies), None) or " + ".join(dict.fromkeys(row.batchnorm))


def _runs(values: Sequence[str | None]) -> Iterable[tuple[str | None, str]]:
    """Each value with the stages that have it one after another: `("train", "1-3")`."""
    for value, same in groupby(enumerate(values), key=lambda pair: pair[1]):
        places = [i for i, _ in same]
        yield value, f"{places[0]}" + (f"-{places[-1]}" if len(places) > 1 else "")


def _short(name: str) -> str:
    return name.removeprefix(PREFIX)
