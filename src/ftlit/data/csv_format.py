"""How csv files that list examples are written: encoding, separator and usual names of columns. No torch, for the command line."""

import codecs
from dataclasses import dataclass
from typing import TextIO

from ftlit.errors import UserError

USUAL_NAMES = {  # option that gives a column -> names that other programs use for it
    "path_column": ("image", "images", "img", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_id", "name"),
    "label_column": ("class", "class_name", "classname", "target", "category", "labels", "y", "species", "diagnosis", "sentiment"),
    "text_column": ("sentence", "content", "review", "body", "document", "message", "tweet"),
}
TAB = ("tab", "\\t")  # what stands for a tab on the command line
TAB_CHARACTER = "\t"


@dataclass(frozen=True)
class CsvFormat:
    """How the text of a csv file is read.

    Args:
        encoding: of the file, by Python's name, such as utf-8 or cp1252.
        separator: the character between two cells, or `tab`; `None`: a comma, or the semicolon or tab of a header line without commas.

    Raises:
        UserError: an unknown encoding, or a separator that is no single character.
    """

    encoding: str = "utf-8"
    separator: str | None = None

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError) as error:  # an unknown name, one that is not for texts, one with a null byte
            raise UserError(
                f"data.encoding={self.encoding} is not a text encoding of Python: give utf-8, cp1252 (spreadsheets on Windows), latin-1, "
                "utf-16, ..."
            ) from error
        if self.separator is not None and self.separator not in TAB and (len(self.separator) != 1 or self.separator in '"\r\n'):
            raise UserError(
                f"data.separator={self.separator!r}: give one character, such as ';' or '|', or tab, or leave data.separator out"
            )

    @property
    def decoder(self) -> str:
        """The name with which a file is opened: spreadsheets write a byte order mark in UTF-8, which is no part of a name."""
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding

    def delimiter(self, file: TextIO) -> str:
        """The character between two cells of an open file."""
        if self.separator is not None:
            return "\t" if self.separator in TAB else self.separator
        header = file.readline()
        file.seek(0)
        return next((mark for mark in ";\t" if mark in header and "," not in header), ",")


USUAL = CsvFormat()
