"""Word the errors in the syntax of a command line: spaces around `=`, quotes that are not closed, values that no config group takes."""

import re
from collections.abc import Sequence

from ftlit.errors import UserError, shorten
from ftlit.formatting import shell_word
from ftlit.recipes.config import hydra_internals
from ftlit.recipes.config.literal_values import QUOTED, quote

NAME = r"[+~]*\w[\w.@/-]*"
ACCEPTED = "give group=option or name=value, or a folder of images"
NO_NAME = r"null|true|false|\[.*\]|[\d.]+"  # values that are not the name of an option


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
        remedy += f"; to give this text as it is, write {shell_word(f'{name}={quote(value)}')}"
    elif word.strip() and not found and not word.startswith(("-", "~", "+")):
        remedy = f"there is no file or folder of this name; {ACCEPTED}"
    return UserError(f"cannot read {word!r}: {remedy}")


def bad_group_value(words: Sequence[str]) -> UserError:
    """The error for the word that gives a config group something other than the name of an option: `scenario=null`, `head=3`."""
    with hydra_internals.fresh_hydra():
        for word in words:
            group, _, value = word.partition("=")
            if re.fullmatch(NO_NAME, value, re.IGNORECASE) and (options := hydra_internals.group_options(group)):
                names = shorten(option for option in options if not option.startswith("_"))
                return UserError(f"{word}: give the name of an option of {group} ({names}), or ~{group} to remove the group")
    return UserError(
        "one of the words GROUP=VALUE, such as data=... or lr_scheduler=..., has a number, list or mapping in place of a name: give a "
        "name, as in head=linear, or ~head to remove the group"
    )
