"""A data file of rows with new answers, written row by row: complete or not there, and gone on with where a start before this one ended."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from switchkd.data.errors import DataError, SampleError
from switchkd.data.llava_rows import Converted, Media, llava_line
from switchkd.data.rewriting import Row
from switchkd.files import flush, naming_full_disks, whole_file


class AnswerFile:
    """A hidden file in the folder of `output`, renamed to it once all rows are written.

    Args:
        output: a new file, .jsonl, of LLaVA rows.
        made_from: what the answers depend on, by name: a start with anything else does not go on with them.

    Raises:
        DataError: the output is there already, or a start before this one made its answers from something else.
    """

    def __init__(self, output: Path, made_from: Mapping[str, str]) -> None:
        if output.suffix != ".jsonl":
            raise DataError(f"{output}: JSON lines are written, so the name must end in .jsonl")
        if output.exists():
            raise DataError(f"{output} is there already: choose another output, or remove it")
        self.output = output
        self.partial = output.with_name(f".{output.name}.partial")
        pictures = output.with_name(f"{output.stem}-pictures")
        self._media = Media(output.parent.resolve(), pictures, pictures.name)
        self.done = Converted()
        #: Rows that need no answer any more, those that were left out among them.
        self.taken = 0
        output.parent.mkdir(parents=True, exist_ok=True)
        kept = self._kept(made_from) if self.partial.exists() else [json.dumps({"made from": dict(made_from)})]
        with naming_full_disks(self.partial):
            self._file = self.partial.with_name(f"{self.partial.name}.new").open("w", encoding="utf-8")
            self._file.writelines(f"{line}\n" for line in kept)
            self._settle()
        os.replace(self._file.name, self.partial)

    def _kept(self, made_from: Mapping[str, str]) -> list[str]:
        """The whole lines of a start before this one."""
        lines = self.partial.read_text(encoding="utf-8").split("\n")[:-1]  # what has no end was left half-written
        before: dict[str, str] = json.loads(lines[0])["made from"] if lines else dict(made_from)
        if changed := [name for name in made_from if before.get(name) != made_from[name]]:
            told = "; ".join(f"{name}: {before.get(name)} then, {made_from[name]} now" for name in changed)
            raise DataError(
                f"{self.partial} has answers that were made from something else: {told}. Put back what was there, choose another output, "
                "or remove that file"
            )
        for line in lines[1:]:
            self._count(json.loads(line))
        return lines or [json.dumps({"made from": dict(made_from)})]

    def _count(self, line: Row) -> None:
        self.taken += 1
        if "left out" in line:
            self.done.left_out.append(line["left out"])
        else:
            self.done.rows += 1

    def write(self, rows: list[Row | str]) -> None:
        """Add rows, or why one was left out; they are on the disk when this returns.

        Raises:
            OSError: the disk takes no more. A further start writes the rows again that are not whole.
        """
        with naming_full_disks(self.partial):
            for row in rows:
                try:
                    line = {"left out": row} if isinstance(row, str) else llava_line(row, self._media, self.done)
                except SampleError as error:
                    line = {"left out": f"sample {row['id']!a}: {error}" if isinstance(row, dict) else str(error)}
                self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self._count(line)
            self._settle()

    def _settle(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> Converted:
        """All rows are there: write the file without what only a further start needs.

        Raises:
            DataError: no row is left.
        """
        self._file.close()
        if not self.done.rows:
            self.partial.unlink()
            raise DataError(f"no row is left; {self.done.left_out[0] if self.done.left_out else 'there were none'}")
        with whole_file(self.output) as whole, whole.open("w", encoding="utf-8") as file:
            file.writelines(self._lines())
        flush(self.output.parent)
        self.partial.unlink()
        return self.done

    def _lines(self) -> Iterator[str]:
        with self.partial.open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number and not line.startswith('{"left out": '):
                    yield line

    def close(self) -> None:
        """Leave what there is to a further start."""
        with suppress(OSError):  # of a line that a full disk did not take, which `write` has told of
            self._file.close()
        with suppress(OSError):  # unless it is empty: its only rows were left out
            self._media.folder.rmdir()
