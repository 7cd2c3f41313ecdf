"""A JSON list read value by value: a file of any size takes the memory of its largest value."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from switchkd.data.errors import DataError

#: Bytes read at a time.
CHUNK_BYTES = 1 << 20
#: A syntax error nearer than this to the end of what has been read may be a value that goes on: `tru`, `\u00`, `-1.`
_LONGEST_TOKEN = 16
_SPACE = " \t\n\r"


class _Window:
    """The part of the file that is in memory, as text, and the place in it that is read next."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.text = ""
        self.at = 0
        self.complete = False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        #: Line breaks, and characters since the last of them, that are no longer in `text`.
        self._lines_before = 0
        self._columns_before = 0
        #: A place in `text`, and the line breaks before it.
        self._counted = (0, 0)

    def grow(self) -> None:
        """Forget what has been read, and read on: twice as much where one value fills the whole window."""
        self._lines_before, self._columns_before = self.line(self.at) - 1, self.column(self.at) - 1
        self.text, self.at, self._counted = self.text[self.at :], 0, (0, 0)
        chunk = self.file.read(max(CHUNK_BYTES, len(self.text)))
        self.complete = not chunk
        try:
            self.text += self._decoder.decode(chunk, final=self.complete)
        except UnicodeDecodeError as error:
            line = self.line(len(self.text)) + error.object[: error.start].count(b"\n")
            raise DataError(f"{self.path}, line {line}: not UTF-8 text") from error

    def line(self, at: int) -> int:
        """The line of a place; counted on from the place that was asked for last."""
        counted_to, breaks = self._counted if self._counted[0] <= at else (0, 0)
        self._counted = at, breaks + self.text.count("\n", counted_to, at)
        return self._lines_before + self._counted[1] + 1

    def column(self, at: int) -> int:
        last_break = self.text.rfind("\n", 0, at)
        return at - last_break if last_break >= 0 else self._columns_before + at + 1

    def next_character(self) -> str:
        """The character at the next place that is no white space; nothing at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.complete:
                return ""
            self.grow()

    def error(self, message: str, at: int) -> DataError:
        return DataError(
            f"{self.path}, line {self.line(at)}, column {self.column(at)}: not valid JSON, perhaps cut off: {message}"
        )

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The value that begins here; the place moves behind it."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_TOKEN
                if self.complete or not goes_on:
                    raise self.error(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
                raise DataError(f"{self.path}, from line {self.line(self.at)}: JSON cannot be read: {error}") from error
            else:
                if end < len(self.text) or self.complete:
                    self.at = end
                    return value
            self.grow()


def read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """The line where each value of the list begins, and the value.

    Raises:
        DataError: the file is not one JSON list in UTF-8; with line and column.
    """
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        window = _Window(file, path)
        if window.next_character() != "[":
            raise window.error("Expecting '['", window.at)
        window.at += 1
        if window.next_character() == "]":
            window.at += 1
        else:
            while True:
                window.next_character()
                line = window.line(window.at)
                yield line, window.value(decoder)
                delimiter = window.next_character()
                if delimiter not in (",", "]"):
                    raise window.error("Expecting ',' delimiter", window.at)
                window.at += 1
                if delimiter == "]":
                    break
        if window.next_character():
            raise window.error("Extra data", window.at)
