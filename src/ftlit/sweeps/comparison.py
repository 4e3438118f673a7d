"""Compare the settings of a sweep with any one of them: paired differences in test accuracy over equal seeds."""

from collections.abc import Sequence
from statistics import mean

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ftlit.errors import UserError, shorten
from ftlit.printing import show
from ftlit.sweeps.caption import ESTABLISHED_NOTE, ONE_SEED_NOTE, missing_notes
from ftlit.sweeps.jobs import TEST, Job
from ftlit.sweeps.seed_statistics import difference
from ftlit.sweeps.setting_results import SettingResults

PAIRED_NOTE = (
    "Difference: test accuracy minus that of {setting}, with the same seed; its mean over the seeds ± half of the 95 % interval (Student's "
    "t), without ± where it is the same for all seeds; - without a seed in common."
)


def print_comparison(jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Print the difference of each setting to one of them.

    Args:
        jobs: of the sweep.
        words: `name=value` of swept options that only this setting has; numbers are equal however they are written (`3e-4`, `0.0003`).

    Raises:
        UserError: they match no setting, or several.
    """
    results = SettingResults(jobs)
    if not words:
        raise UserError(
            "--against has no value: give the swept values of the jobs to compare with, such as --against 'head=mlp data.per_class=5'"
        )
    pairs = [[f"{name}={value}" for name, value in zip(results.names, setting.values, strict=True)] for setting in results.settings]
    wanted = {_parsed(word) for word in words}
    found = [place for place, own in enumerate(pairs) if wanted <= set(map(_parsed, own))]
    if len(found) != 1:
        settings = shorten(" ".join(pairs[place]) for place in found or range(len(pairs)))
        matches = f"{len(found)} settings" if found else "no setting"
        raise UserError(f"--against '{' '.join(words)}' matches {matches}: give one of these in full: {settings}")
    (place,) = found
    other = results.settings[place]
    differences = [None if setting is other else difference(setting, other, TEST) for setting in results.settings]
    notes = [*missing_notes(jobs), PAIRED_NOTE.format(setting=" ".join(pairs[place]))]
    notes += [ONE_SEED_NOTE] if any(found and found.seeds == 1 for found in differences) else []
    notes += [ESTABLISHED_NOTE] if any(found and found.is_established for found in differences) else []
    table = Table()
    for name in (*results.names, "seeds", "test accuracy", "difference"):
        table.add_column(escape(name), overflow="fold")
    for setting, compared in zip(results.settings, differences, strict=True):
        values = setting.of(TEST)
        numbers = str(len(values)), f"{mean(values):.4f}" if values else "-", str(compared or "-")
        table.add_row(*map(escape, (*setting.values, *numbers)))
    show(Group(table, Text(" ".join(notes))))


def _parsed(word: str) -> tuple[str, float | str]:
    """The name and the value of an option: Hydra stores `0.0003` and `True` for `3e-4` and `true`.

    >>> _parsed("optimizer.lr=3e-4") == _parsed("optimizer.lr=0.0003"), _parsed("report=true") == _parsed("report=True")
    (True, True)
    """
    name, _, value = word.lstrip("+").partition("=")
    text = value.lower() if value.lower() in ("true", "false", "null", "none") else value
    try:
        return name, float(text)
    except ValueError:
        return name, text
