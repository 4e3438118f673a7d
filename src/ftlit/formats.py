"""Format numbers of the files that are read again: older files are migrated, newer ones are refused in one line.

A file without a number has format 0: it was written before there were numbers. JSON files carry a checksum too, so that a byte that
changed is noticed; one without it (an older file, or one that a user wrote) is read as it is.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from ftlit.errors import UserError, one_line
from ftlit.files import write_atomically

FORMAT = 1
KEY = "format"
CHECKSUM = "checksum"
ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files may be any bytes

JsonObject = dict[str, Any]


class DamagedFile(UserError):
    """A file that is cut off, in which a byte changed, or that is something else than its name says.

    Args:
        path: of the file.
        reason: how the damage shows.
        remedy: what to do.
    """

    def __init__(self, path: str | Path, reason: str, remedy: str = "") -> None:
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.reason})" + (f": {self.remedy}" if self.remedy else "")


@contextmanager
def reading(path: str | Path, remedy: str = "remove it") -> Iterator[None]:
    """Turn any error of a block that reads a file into one line that names the file and says what to do.

    Raises:
        DamagedFile: for errors other than these.
        UserError: the file cannot be opened or read, or the block raised it.
    """
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(error.path, error.reason, error.remedy or remedy) from error
    except UserError:
        raise
    except NotADirectoryError as error:
        parent = next((place for place in Path(path).parents if place.is_file()), path)
        raise UserError(f"{parent} is a file, but a folder is needed here: give a folder") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, or is a link to a file that is missing: restore it") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or one_line(error)}): {remedy}") from error
    except KeyError as error:
        raise DamagedFile(path, f"it lacks {one_line(error)}", remedy) from error
    except Exception as error:  # damaged bytes raise almost any error
        raise DamagedFile(path, one_line(error), remedy) from error


class NewerFormat(UserError):
    """A file that a newer program wrote."""


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
        NewerFormat: the file was written by a newer program.
    """
    found = content.get(KEY, 0)
    bare = {name: value for name, value in content.items() if name != KEY}
    if found == FORMAT:
        return bare
    if found == 0:
        return from_0(bare)
    if not isinstance(found, int) or found < 0:
        raise DamagedFile(file, f"its format is {found!r}, not a number", "restore it")
    raise NewerFormat(f"{file} was written by a newer ftlit (format {found}); this version reads formats 0 and {FORMAT}: upgrade ftlit")


def write_json(path: Path, content: Mapping[str, Any] | list[JsonObject], *, indent: int | None = 1) -> None:
    """Write an object, or a list of objects, each with format number and checksum, atomically."""
    entries = [with_format(entry) for entry in ([content] if isinstance(content, Mapping) else content)]
    checked = [{**entry, CHECKSUM: _checksum(entry)} for entry in entries]
    text = json.dumps(checked[0] if isinstance(content, Mapping) else checked, ensure_ascii=False, indent=indent)
    write_atomically(path, text.encode(**ENCODING))


def read_json(path: Path, from_0: Callable[[JsonObject], JsonObject] = dict, *, remedy: str = "remove it") -> Any:
    """The object, or list of objects, of a file in today's format, without number and checksum.

    Args:
        path: of the file.
        from_0: see `upgraded`.
        remedy: what to do about a damaged file.

    Raises:
        DamagedFile: not JSON, or the checksum differs.
        UserError: the file cannot be read, or was written by a newer program.
    """
    with reading(path, remedy):
        found = json.loads(path.read_bytes().decode(**ENCODING))
        entries = [upgraded(_checked(entry), path, from_0) for entry in (found if isinstance(found, list) else [found])]
        return entries if isinstance(found, list) else entries[0]


def _checked(entry: JsonObject) -> JsonObject:
    """An entry without its checksum. Raises `ValueError` where that differs."""
    content = {name: value for name, value in entry.items() if name != CHECKSUM}
    if CHECKSUM in entry and entry[CHECKSUM] != _checksum(content):
        raise ValueError("its checksum differs")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    """Of the values, whatever their order and the spaces between them; the same before they are written and after."""
    as_read = json.loads(json.dumps(content))
    return xxh3_64_hexdigest(json.dumps(as_read, sort_keys=True).encode())
