"""`switchkd data`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitSubcommandPrefixes, Positional, arg, subcommand

from switchkd.commands.presence import require_data, require_model
from switchkd.commands.verb import Verb, load_recipe, model_libraries, parse_columns, print_json, say, slug, warn

if TYPE_CHECKING:
    from collections import Counter

    from switchkd.data.llava_rows import Converted
    from switchkd.data.overview import Overview

_DataName = Annotated[Positional[str], arg(metavar="DATA")]


@dataclass(frozen=True)
class Check:
    """Say what is understood of data, and show three rows with their pictures as a page.

    Example: switchkd data check mine.csv --columns question=q answer=a image=img
    """

    #: A file, a folder, a glob or a data set of the hub (docs/data.md).
    data: _DataName
    #: Where image paths start; by default the data's folder.
    image_root: Path | None = None
    #: Columns that have names of their own: question=q answer=a image=img.
    columns: tuple[str, ...] = ()
    #: The page; by default runs/check/DATA.html.
    page: Path | None = None
    #: Print what is understood as JSON.
    json: bool = False

    def run(self) -> int:
        """Print what is understood; 1 if training would stop at so many bad rows."""
        columns = parse_columns(self.columns)
        require_data(self.data)
        with model_libraries():
            from switchkd.console import harmless
            from switchkd.data.errors import MAX_BAD_FRACTION
            from switchkd.data.overview import look_over
            from switchkd.report.rows_page import write_rows_page

        seen = look_over(self.data, self.image_root, columns)
        lines = describe(seen)
        if self.json:
            print_json(as_values(seen))
        else:
            print(harmless("\n".join(lines)))
        page = self.page or Path("runs/check", f"{slug(self.data)}.html")
        say(f"{len(seen.examples)} rows with their pictures: {write_rows_page(self.data, lines, seen.examples, page)}")
        return 1 if seen.bad > MAX_BAD_FRACTION * seen.rows else 0


@dataclass(frozen=True)
class Rewrite:
    """Write data as LLaVA JSON lines, which read back as the same rows.

    Pictures below the folder of OUTPUT are referenced, others are written next to it. Rows that cannot be used are left out and named.

    Example: switchkd data convert 'shards/*.tar' mine.jsonl
    """

    #: A file, a folder, a glob or a data set of the hub (docs/data.md).
    data: _DataName
    #: A new file, .jsonl.
    output: Annotated[Positional[Path], arg(metavar="OUTPUT.jsonl")]
    #: Where image paths start; by default the data's folder.
    image_root: Path | None = None
    #: Columns that have names of their own: question=q answer=a image=img.
    columns: tuple[str, ...] = ()

    def run(self) -> int:
        """Write the rows, and say what was left out."""
        columns = parse_columns(self.columns)
        require_data(self.data)
        with model_libraries():
            from switchkd.data.llava_rows import write_llava

        done = write_llava(self.data, self.output, self.image_root, columns)
        for problem in done.left_out[:5]:
            warn(f"left out: {problem}")
        tell = warn if done.left_out else say
        tell(
            f"{done.rows:,} rows in {self.output}, {len(done.left_out):,} left out; pictures: {done.referenced:,} where they were, "
            f"{done.written:,} written next to it"
        )
        return 0


@dataclass(frozen=True)
class AnswerAnew:
    """Have a teacher answer every question of data anew, and write them as LLaVA JSON lines: a student is then trained on its words.

    The same command goes on where it was ended. Rows that cannot be asked, or are not answered to the end, are left out and named.

    Example: switchkd data answer mine.json --teacher runs/teacher -o mine-answered.jsonl

    Example: switchkd data answer mine.json --server http://localhost:8000/v1 --teacher OWNER/NAME -o mine-answered.jsonl
    """

    #: A file, a folder, a glob or a data set of the hub (docs/data.md); or a recipe, .yaml: what its `data.train` names, and its teacher.
    data: _DataName
    #: A new file, .jsonl.
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE.jsonl")]
    #: A checkpoint directory, the folder of a run, or OWNER/NAME; a recipe's own if not given. With --server: what the server calls it.
    teacher: str | None = None
    #: Where the OpenAI API of a server begins (vLLM and others): the teacher answers there. A key is read from SWITCHKD_SERVER_KEY.
    server: str | None = None
    #: Where image paths start; by default the data's folder.
    image_root: Path | None = None
    #: Columns that have names of their own: question=q answer=a image=img.
    columns: tuple[str, ...] = ()
    #: Rows at a time; with --server requests at a time.
    batch_size: int = 32
    #: A row with a longer answer is left out.
    max_new_tokens: int = 512
    #: Of the sampling at --server; 0: the likeliest tokens, as a teacher that is loaded here always answers.
    temperature: float = 0.0
    #: Of the sampling at --server, where it takes one.
    seed: int | None = None

    def run(self) -> int:
        """Write the answers, and say what was left out."""
        if self.batch_size < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"--batch-size and --max-new-tokens must be at least 1, got {self.batch_size} and {self.max_new_tokens}"
            )
        names, teacher, image_root, columns = self._named()
        for name in names:
            require_data(name)
        if self.server is None:
            done = self._answer_here(names, teacher, image_root, columns)
        else:
            done = self._answer_there(self.server, names, teacher, image_root, columns)
        for problem in done.left_out[:5]:
            warn(f"left out: {problem}")
        tell = warn if done.left_out else say
        tell(f"{done.rows:,} rows with the answers of {teacher} in {self.output}, {len(done.left_out):,} left out")
        return 0

    def _answer_here(
        self, names: list[str], teacher: str, image_root: Path | None, columns: dict[str, str]
    ) -> "Converted":
        if self.temperature or self.seed is not None:
            raise ValueError(
                "--temperature and --seed are for --server: a teacher that is loaded here decodes greedily"
            )
        require_model(teacher)
        with model_libraries():
            from switchkd.data.formats import load_rows
            from switchkd.evaluate.answer_data import answer_data, rows_digest, weights_digest
            from switchkd.evaluate.generate import load

        rows = load_rows(names, image_root, columns)
        model, processor = load(teacher)
        return answer_data(
            model,
            processor,
            rows,
            self.output,
            made_from={"teacher": weights_digest(model), "rows": rows_digest(rows)},
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
        )

    def _answer_there(
        self, url: str, names: list[str], teacher: str, image_root: Path | None, columns: dict[str, str]
    ) -> "Converted":
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature must be finite and not negative, got {self.temperature}")
        with model_libraries():
            from switchkd.data.formats import load_rows
            from switchkd.evaluate.answer_data import answer_data_by_server
            from switchkd.evaluate.answer_server import AnswerServer

        server = AnswerServer(
            url,
            teacher,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            at_once=self.batch_size,
        )
        return answer_data_by_server(server, load_rows(names, image_root, columns), self.output)

    def _named(self) -> tuple[list[str], str, Path | None, dict[str, str]]:
        """The data, the teacher, where images are, and names of columns."""
        image_root, columns, teacher = self.image_root, parse_columns(self.columns), self.teacher
        if not self.data.endswith((".yaml", ".yml")):
            if teacher is None:
                raise ValueError(
                    "data answer needs --teacher, who answers: a checkpoint directory, the folder of a run, or OWNER/NAME; with --server, "
                    "what the server calls its model"
                )
            return [self.data], teacher, image_root, columns
        from switchkd.recipe.schema import data_names

        recipe = load_recipe(Path(self.data), ())
        if teacher is None and len(recipe.teachers) > 1:
            there = ", ".join(f"{tag}: {one.path}" for tag, one in recipe.teachers.items())
            raise ValueError(f"{self.data} names several teachers ({there}): give the one who answers with --teacher")
        teacher = teacher or (None if recipe.last_teacher is None else recipe.last_teacher.path)
        if teacher is None:
            raise ValueError(f"{self.data} names no teacher: give one with --teacher")
        root = image_root or (None if recipe.data.image_root is None else Path(recipe.data.image_root))
        return data_names(recipe.data.train), teacher, root, columns or recipe.data.columns


@dataclass(frozen=True)
class Data(Verb):
    """Look at data as training would read them (check), write them as LLaVA JSON lines (convert), have a teacher answer them (answer)."""

    action: OmitSubcommandPrefixes[
        Annotated[Check, subcommand("check")]
        | Annotated[Rewrite, subcommand("convert")]
        | Annotated[AnswerAnew, subcommand("answer")]
    ]

    def run(self, fields: Sequence[str]) -> int:
        """Do what was asked."""
        return self.action.run()


def as_values(seen: "Overview") -> dict[str, object]:
    """The same as plain values."""
    counts = {
        name: getattr(seen, name)
        for name in ("rows", "bad", "answers", "learned", "files", "embedded", "videos", "problems")
    }
    return counts | {"sources": {name: vars(noted) for name, noted in seen.sources.items()}}


def describe(seen: "Overview") -> list[str]:
    """What is understood of data, in lines."""
    lines = [
        f"{seen.rows:,} rows, {seen.rows - seen.bad:,} of them can be used",
        f"{seen.answers:,} answers, {seen.learned:,} of them are learned; pictures: {seen.files:,} in files, {seen.embedded:,} inside"
        + (f"; videos: {seen.videos:,}" if seen.videos else ""),
    ]
    for name, noted in seen.sources.items():
        lines.append(
            f"{name}: form {_listed(noted.forms)}; read {_listed(noted.read)}; left unread {_listed(noted.unread)}"
        )
    return lines + [f"problem: {problem}" for problem in seen.problems]


def _listed(counter: "Counter[str]") -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counter.most_common()) or "nothing"
