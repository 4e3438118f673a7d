"""The words of a command line of training, as Hydra needs them."""

import re
from collections.abc import Sequence

from ftlit.cli.data_words import set_data
from ftlit.errors import UserError
from ftlit.recipes.config.candidates import set_auto
from ftlit.recipes.config.literal_values import quote_literals
from ftlit.recipes.config.overrides import SEARCH
from ftlit.recipes.config.synonyms import synonym
from ftlit.recipes.config.syntax_errors import check_group_values, check_spaces

HYDRA_FLAGS = (
    *("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion"),
    *("config-path", "config-name", "config-dir", "experimental-rerun", "info"),
)
FLAGS_WITH_VALUE = (
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--experimental-rerun"),
)


def complete(words: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra needs them: see `set_data`, `set_auto`, `add_arguments`, `quote_layer_numbers`,
    `set_search_mode`, `flags_first` and `quote_literals`. Raises `UserError` for what Hydra would not understand.
    """
    check_spaces(words)
    check_group_values(words)
    if empty := next((word for word in words if re.fullmatch(r"\+{0,2}hydra\.(run|sweep)\.dir=(''|\"\")?", word)), None):
        raise UserError(f"{empty} has no value: give a folder, or {empty.partition('=')[0]}=. for the current one")
    if group := next((found for word in words if (found := re.fullmatch(r"\+{0,2}hydra\.(launcher|sweeper)=(\w*)", word))), None):
        raise UserError(f"{group[0]}: an option of a group is chosen with a slash, so give hydra/{group[1]}={group[2] or '...'}")
    _check_flags(words)
    shows = next((word for word in words if re.fullmatch(r"--(cfg|info|hydra-help|help|version)(=.*)?|-c", word)), None)
    if shows and {"-m", "--multirun"} & set(words):
        raise UserError(f"{shows} shows one config and -m starts a sweep: leave out -m and give each option one value")
    of_flags = [word for before, word in zip(["", *words], words, strict=False) if before in FLAGS_WITH_VALUE]
    known = flags_first(set_search_mode(quote_layer_numbers(add_arguments(set_auto(set_data(words, of_flags))))))
    return quote_literals(known, sweep=bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(known)))


def _check_flags(words: Sequence[str]) -> None:
    """Raise `UserError` for a flag that Hydra does not have, as `--epochs 5`."""
    for word, after in zip(words, [*words, "..."][1:], strict=True):
        found = re.fullmatch(r"--([A-Za-z][\w.-]*)(?:=(.*))?", word, re.DOTALL)
        if found and not any(flag.startswith(found[1]) for flag in HYDRA_FLAGS):
            name, value = found[1].replace("-", "_"), after if found[2] is None else found[2]
            raise synonym(name, value) or UserError(f"there is no flag {word!r}: options have no leading dashes, so give {name}={value}")


def flags_first(words: Sequence[str]) -> list[str]:
    """Move flags and their values before all overrides: argparse refuses overrides on both sides of a flag.

    >>> print(*flags_first(["seed=1", "--config-dir", "my_conf", "head=mine", "-m"]))
    --config-dir my_conf -m seed=1 head=mine
    """
    before = ["", *words]
    is_flag = [word.startswith("-") or before[place] in FLAGS_WITH_VALUE for place, word in enumerate(words)]
    flags, others = ([word for word, own in zip(words, is_flag, strict=True) if own is kind] for kind in (True, False))
    return [*flags, *others]


def quote_layer_numbers(words: Sequence[str]) -> list[str]:
    """Put quotes around numbers of layers, which are one value: Hydra takes `1,2,3` for a sweep. With `-m` they are one, and stay.

    >>> print(*quote_layer_numbers(["seed=1", "schedule.freeze_layers=1,2,3"]))
    seed=1 schedule.freeze_layers='1,2,3'
    """
    if {"-m", "--multirun"} & set(words):
        return list(words)
    return [re.sub(r"^(\+{0,2}schedule\.freeze_layers)=([\d\s-]+,[\d\s,-]*)$", r"\1='\2'", word) for word in words]


def add_arguments(words: Sequence[str]) -> list[str]:
    """Let values beside `GROUP._target_=...` be arguments that the config does not have yet; later they are checked against its signature.
    A search names its values by these words, so that they stay as they are.

    >>> print(*add_arguments(["head._target_=torch.nn.Linear", "head.bias=false", "seed=1"]))
    head._target_=torch.nn.Linear ++head.bias=false seed=1
    """
    groups = {found[1] for word in words if (found := re.match(r"\+{0,2}([a-z_]+)\._target_=", word))}
    if any(re.match(rf"\+{{0,2}}{SEARCH}=", word) for word in words):
        return list(words)
    return [f"++{word}" if (found := re.match(r"([a-z_]+)\.[A-Za-z]", word)) and found[1] in groups else word for word in words]


def set_search_mode(words: Sequence[str]) -> list[str]:
    """Make a search a sweep, also without `-m`, unless the words give the mode: Hydra 1.4 takes no mode from an option of a group.

    >>> print(*set_search_mode(["seed=1", "hparams_search=optuna"]))
    seed=1 hparams_search=optuna hydra.mode=MULTIRUN
    """
    searches = [place for place, word in enumerate(words) if re.match(rf"\+{{0,2}}{SEARCH}=", word)]
    has_mode = any(word in ("-m", "--multirun") or re.match(r"\+{0,2}hydra\.mode=", word) for word in words)
    if has_mode or not searches or words[searches[-1]].partition("=")[2] in ("", "null"):
        return list(words)
    return [*words, "hydra.mode=MULTIRUN"]
