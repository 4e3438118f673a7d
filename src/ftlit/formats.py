"""Format numbers of the files that are read again: older files are migrated, newer ones are refused in one line.

A file without a number has format 0: it was written before there were numbers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ftlit.errors import UserError

FORMAT = 1
KEY = "format"

JsonObject = dict[str, Any]


def with_format(content: Mapping[str, Any]) -> JsonObject:
    """The content of a file with today's format number in front."""
    return {KEY: FORMAT, **content}


def upgraded(content: Mapping[str, Any], file: str | Path, from_0: Callable[[JsonObject], JsonObject] = dict) -> JsonObject:
    """The content of a file in today's format, without the number.

    Args:
        content: as it was read.
        file: where it stands, for the message.
        from_0: migrates content of format 0; by default nothing changes.

    Raises:
        UserError: the file was written by a newer program.
    """
    found = content.get(KEY, 0)
    bare = {name: value for name, value in content.items() if name != KEY}
    if found == FORMAT:
        return bare
    if found == 0:
        return from_0(bare)
    raise UserError(f"{file} was written by a newer ftlit (format {found}); this one reads formats 0 and {FORMAT}: upgrade ftlit")
