"""JSON of any shape read value by value: a file of any size takes the memory of its largest value."""

import codecs
import json
import logging
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from switchkd.data.errors import DataError
from switchkd.data.gzipped import open_data

#: Bytes read at a time.
CHUNK_BYTES = 1 << 20
#: A syntax error nearer than this to the end of what has been read may be a value that goes on: `tru`, `\u00`, `-1.`
_LONGEST_TOKEN = 16
#: A row that is longer is refused: a small packed file could unpack to one that fills the memory.
LONGEST_ROW_BYTES = 512 << 20
#: Keys of an object under which tools keep their rows, and keys that say that an object is a row itself.
_WRAPPERS = (
    *("data", "rows", "samples", "examples", "instances", "items", "records", "annotations", "questions"),
    *("train", "test", "val", "validation", "dev", "eval"),
)
_ROW_KEYS = ("conversations", "messages", "texts", "image", "images", "question", "query", "prompt", "instruction")

_log = logging.getLogger(__name__)
_SPACE = " \t\n\r"


class _Window:
    """The part of the file that is in memory, as text, and the place in it that is read next."""

    def __init__(self, file: BufferedReader, path: Path) -> None:
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
        if len(self.text) > LONGEST_ROW_BYTES:
            raise DataError(
                f"{self.path}, from line {self.line(0)}: a row is longer than {LONGEST_ROW_BYTES >> 20} MiB"
            )
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
    """The line where each value of the list in a file begins, and the value.

    Raises:
        DataError: the file is not one JSON list in UTF-8; with line and column.
    """
    with open_data(path) as file:
        window = _Window(file, path)
        yield from _list_values(window)
        if window.next_character():
            raise window.error("Extra data", window.at)


def read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file that begins with an object, and the lines where they begin.

    They may stand one on each line, one after another over several lines each, or in a list inside of one object, under one of the usual
    names (`{"data": [...]}`).

    Raises:
        DataError: the file is not JSON in UTF-8, with line and column; or it holds several lists.
    """
    with open_data(path) as file:
        window = _Window(file, path)
        window.next_character()
        if keys := _find_list(window):
            yield from _list_values(window)
            _refuse_more_lists(window, *keys)
            return
    with open_data(path) as file:
        first = file.readline(LONGEST_ROW_BYTES + 1)
    if _is_json(first):
        yield from _json_lines(path)
    else:
        with open_data(path) as file:
            yield from _values(_Window(file, path))


def _values(window: _Window) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    while window.next_character():
        yield window.line(window.at), window.value(decoder)


def _list_values(window: _Window) -> Iterator[tuple[int, Any]]:
    """The values of the list that begins here; the place moves behind it."""
    decoder = json.JSONDecoder()
    if window.next_character() != "[":
        raise window.error("Expecting '['", window.at)
    window.at += 1
    if window.next_character() == "]":
        window.at += 1
        return
    while True:
        window.next_character()
        line = window.line(window.at)
        yield line, window.value(decoder)
        delimiter = window.next_character()
        if delimiter not in (",", "]"):
            raise window.error("Expecting ',' delimiter", window.at)
        window.at += 1
        if delimiter == "]":
            return


def _find_list(window: _Window) -> list[str] | None:
    """Go to the list of rows that the object here holds; the keys up to that of the list, or None where the object is a row itself."""
    keys = []
    try:
        for key in _keys(window):
            if key in _ROW_KEYS:
                return None
            keys.append(key)
            if key in _WRAPPERS and window.next_character() == "[":
                return keys
            window.value(json.JSONDecoder())
    except DataError:  # told by the reader of rows
        pass
    return None


def _refuse_more_lists(window: _Window, *keys: str) -> None:
    """Read the rest of the object behind the list of the last of these keys; its other keys are named in the log."""
    *others, key = keys
    for other in _keys(window, inside=True):
        if other in (*_WRAPPERS, *_ROW_KEYS) and window.next_character() == "[":
            raise DataError(f"{window.path}: has the lists `{key}` and `{other}`; write the one you mean into a file")
        window.value(json.JSONDecoder())
        others.append(other)
    if window.next_character():
        raise window.error("Extra data", window.at)
    if others:
        _log.warning(
            "%s: rows are read from `%s`; what else the file holds is not read: %s", window.path, key, ", ".join(others)
        )


def _keys(window: _Window, *, inside: bool = False) -> Iterator[str]:
    """The keys of the object here, with the place behind the colon of each; whoever asks reads the value. `inside`: behind a value."""
    if not inside:
        window.at += 1
    while (character := window.next_character()) != "}":
        if inside and character != ",":
            raise window.error("Expecting ',' delimiter", window.at)
        window.at += inside
        if window.next_character() != '"':
            raise window.error("Expecting property name enclosed in double quotes", window.at)
        key = window.value(json.JSONDecoder())
        if window.next_character() != ":":
            raise window.error("Expecting ':' delimiter", window.at)
        window.at += 1
        window.next_character()
        yield key
        inside = True
    window.at += 1


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        return True  # told by the reader of lines
    except ValueError:
        return False
    return True


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open_data(path) as file:
        for number, content in enumerate(iter(lambda: file.readline(LONGEST_ROW_BYTES + 1), b""), start=1):
            if len(content) > LONGEST_ROW_BYTES:
                raise DataError(f"{path}, line {number}: is longer than {LONGEST_ROW_BYTES >> 20} MiB")
            try:
                line = content.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 text") from error
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}, column {error.colno}: not valid JSON, perhaps cut off: {error.msg}"
                ) from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{path}, from line {number}: JSON cannot be read: {error}") from error
            yield number, row
