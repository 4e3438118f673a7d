"""Word the errors in the syntax of a command line: spaces around `=`, quotes that are not closed, values that no config group takes."""

import re
from collections.abc import Sequence

from ftlit.errors import UserError, shorten
from ftlit.formatting import shell_word
from ftlit.recipes.config import hydra_internals
from ftlit.recipes.config.literal_values import QUOTED, quote

NAME = r"[+~]*\w[\w.@/-]*"
ACCEPTED = "give group=option or name=value, or a folder of images"
NO_NAME = r"null|true|false|\[.*\]|\{.*\}|[\d.]+"  # values that are not the name of an option
OF_SEVERAL = ("logger", "callbacks", "experiment", "debug")  # groups of which several options work together
OPTIONAL = ("scenario", "logger", "experiment", "hparams_search", "debug", "pretrain")  # groups that ~GROUP may remove


def check_spaces(words: Sequence[str]) -> None:
    """Raise `UserError` for `lr = 0.1` in one word or in several, and for a word without a name, `=0.1`."""
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        given: list[str] = []
        if re.fullmatch(rf"{NAME}\s+=.*", word, re.DOTALL):
            given = [word]
        elif re.match("[+~]*=", word):
            given = [before] * bool(re.fullmatch(NAME, before)) + [word] + [after] * (word == "=" and after != "")
        elif re.fullmatch(f"{NAME}=", word) and re.fullmatch(r"-?\w[^=]*", after) and not re.match("-[a-zA-Z]", after):
            given = [word, after]
        if given:
            name, _, value = " ".join(given).partition("=")
            meant = (
                f"leave out the spaces around =, so give {shell_word(f'{name.strip()}={value.strip()}')}" if name.strip("+~") else ACCEPTED
            )
            raise UserError(f"cannot read {' '.join(given)!r}: {meant}")


def check_group_values(words: Sequence[str]) -> None:
    """Raise `UserError` for a list or mapping in place of an option of a config group, `head=[linear]`: Hydra would compose some of these,
    and the scenario is then not the one that was meant; and for `~head`, which removes a group that a run needs.
    """
    for word in words:
        if (removed := re.fullmatch(r"~([a-z_]+)(=.*)?", word)) and removed[1] not in OPTIONAL and (names := _options_of(removed[1])):
            raise UserError(f"{word}: a run needs an option of {removed[1]}: leave {word} out, or give {removed[1]}=NAME ({names})")
        found = re.fullmatch(r"\+{0,2}([a-z_]+)=(\[.*\]|\{.*\})", word, re.DOTALL)
        if found is None or found[1] in OF_SEVERAL:
            continue
        is_group = bool(_options_of(found[1]))
        options = [name.strip() for name in found[2][1:-1].split(",")]
        if is_group and found[2].startswith("[") and all(re.fullmatch(r"\w+", name) for name in options):
            sweep = f", or {found[1]}={','.join(options)} -m for a sweep over them" if len(options) > 1 else ""
            raise UserError(f"{word}: {found[1]} takes one option, without brackets: give {found[1]}={options[0]}{sweep}")
        if is_group:
            raise bad_group_value([f"{found[1]}={found[2]}"])


def unreadable(word: str) -> UserError:
    """The error for a word that Hydra's grammar refuses, with the word as one text."""
    name, found, value = word.partition("=")
    remedy = ACCEPTED
    if open_quote := re.search("['\"]", QUOTED.sub("", value)):
        remedy = rf"close the quote {open_quote[0]}, or write \{open_quote[0]} where it is part of a text"
    elif QUOTED.search(value):
        remedy = "text follows a closing quote: put the quotes around the whole value"
    elif found and value.endswith(",") and re.fullmatch(r"\+{0,2}[\w./]+", name):
        remedy = f"give all values without spaces between them, as in {name}={value}..."
    elif found and re.fullmatch(r"\+{0,2}[\w.]+", name):
        remedy = f"to give its value as text, write {shell_word(f'{name}={quote(value)}')}; otherwise {ACCEPTED}"
    elif word.strip() and not found and not word.startswith(("-", "~", "+")):
        remedy = f"there is no file or folder of this name; {ACCEPTED}"
    return UserError(f"cannot read {word!r}: {remedy}")


def bad_group_value(words: Sequence[str]) -> UserError:
    """The error for the word that gives a config group something other than the name of an option: `scenario=null`, `head=3`."""
    for word in words:
        group, _, value = word.partition("=")
        if re.fullmatch(NO_NAME, value, re.IGNORECASE) and (names := _options_of(group)):
            removed = f", or ~{group} for none" if group in OPTIONAL else ""
            return UserError(f"{word}: give the name of an option of {group} ({names}){removed}")
    return UserError(
        "one of the words GROUP=VALUE, such as data=... or lr_scheduler=..., has a number, list or mapping in place of a name: give a "
        "name, as in head=linear"
    )


def _options_of(group: str) -> str:
    """The names of the options of a config group; empty: there is no such group."""
    with hydra_internals.kept_hydra(), hydra_internals.fresh_hydra():
        return shorten(option for option in hydra_internals.group_options(group) if not option.startswith("_"))
