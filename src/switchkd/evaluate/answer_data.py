"""Data whose answers a model writes anew: sequence-level distillation, as data."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.console import progress
from switchkd.data.answer_file import AnswerFile
from switchkd.data.errors import SampleError
from switchkd.data.llava_rows import Converted
from switchkd.data.rewriting import Row, before, said
from switchkd.evaluate.generate import Answer, answers, reading_problems

if TYPE_CHECKING:
    from switchkd.evaluate.answer_server import AnswerServer

#: Rows that wait for a server, or for the one before them, for each request that is under way: a slow answer must not hold up others.
_WAITING = 4


def weights_digest(model: PreTrainedModel) -> str:
    """Of the weights that answer."""
    weights = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return weights.hexdigest()


def rows_digest(rows: Dataset) -> str:
    """How many rows, and a digest of what they ask."""
    asked = hashlib.blake2b(digest_size=8)
    for row in rows.select_columns(["id", "source", "messages"]):
        asked.update(json.dumps(row, sort_keys=True).encode(errors="surrogatepass"))
    return f"{len(rows)} rows ({asked.hexdigest()})"


def answer_data(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Dataset,
    output: Path,
    *,
    made_from: Mapping[str, str],
    batch_size: int = 32,
    max_new_tokens: int = 512,
) -> Converted:
    """Write the rows as LLaVA JSON lines in which every answer is the model's, greedily decoded; a later one follows its own earlier ones.

    What cannot be asked, and what was not answered or not to the end, is left out and counted. A start that was ended goes on where it was.

    Args:
        model: who answers.
        processor: the model's.
        rows: canonical rows (`load_rows`).
        output: a new file, .jsonl.
        made_from: what the answers depend on besides, by name.
        batch_size: rows at a time.
        max_new_tokens: a row with a longer answer is left out.

    Raises:
        DataError: the output is there already, was begun with something else, or no row is left.
    """
    file = AnswerFile(output, {**made_from, "max_new_tokens": str(max_new_tokens)})
    try:
        begins = range(file.taken, len(rows), batch_size)
        for begin in progress(begins, "Answering", len(begins)):
            chosen = [rows[place] for place in range(begin, min(begin + batch_size, len(rows)))]
            file.write(list(_answered(model, processor, chosen, max_new_tokens)))
        return file.finish()
    finally:
        file.close()


def answer_data_by_server(server: "AnswerServer", rows: Dataset, output: Path) -> Converted:
    """As `answer_data`, with a server's model: rows are asked as many at once as the server takes, and written in their order.

    Raises:
        DataError: as there.
        ServerError: the server cannot be asked. The rows that were answered before stay for a further start.
    """
    made_from = {
        "teacher": f"{server.model}, asked at a server",
        "rows": rows_digest(rows),
        **{name: str(value) for name, value in server.settings.items()},
    }
    file = AnswerFile(output, made_from)
    try:
        asyncio.run(_write_served(server, rows, file))
        return file.finish()
    finally:
        file.close()


async def _write_served(server: "AnswerServer", rows: Dataset, file: AnswerFile) -> None:
    free = asyncio.Semaphore(server.at_once)

    async def answered(place: int) -> Row | str:
        async with free:
            return await _served(server, rows[place])

    coming = iter(range(file.taken, len(rows)))
    window: deque[asyncio.Task[Row | str]] = deque()
    done: list[Row | str] = []
    async with server:
        try:
            left = range(file.taken, len(rows))
            for _ in progress(left, "Answering", len(left)):
                more = islice(coming, _WAITING * server.at_once - len(window))
                window.extend(asyncio.create_task(answered(place)) for place in more)
                done.append(await window.popleft())
                # while nothing was answered, what was refused may be the server's fault: a further start asks it again
                if server.answers and not (window and window[0].done()):
                    file.write(done)
                    done = []
            file.write(done)
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)


async def _served(server: "AnswerServer", row: Row) -> Row | str:
    """The row with the server's answers, or why it is left out."""
    if row["problem"]:
        return str(row["problem"])
    new = {**row, "messages": list(row["messages"])}
    places = _answer_places(row)
    for place in places:
        asked = before(new, place)
        try:
            given = _as_message(row, await server.answer(asked), server.max_new_tokens)
        except SampleError as error:
            return f"sample {row['id']!a}: {error}"
        if isinstance(given, str):
            return given
        new["messages"][place] = given
    return new if places else f"sample {row['id']!a}: asks nothing"


def _answer_places(row: Row) -> list[int]:
    return [place for place, message in enumerate(row["messages"]) if message["role"] == "assistant"]


def _as_message(row: Row, answer: Answer, max_new_tokens: int) -> Row | str:
    """An answer as a message, or why it is none."""
    if answer.truncated:
        return f"sample {row['id']!a}: an answer had not ended after {max_new_tokens} tokens"
    return said(answer.text) if answer.text else f"sample {row['id']!a}: an answer is empty"


def _answered(
    model: PreTrainedModel, processor: ProcessorMixin, rows: list[Row], max_new_tokens: int
) -> Iterator[Row | str]:
    """Each row with the model's answers, or why it is left out."""
    done: dict[int, Row | str] = {}
    for number, row in enumerate(rows):
        done[number] = row["problem"] or {**row, "messages": list(row["messages"])}
    places = [_answer_places(row) for row in rows]
    for turn in range(max(map(len, places))):
        asked = {
            number: before(row, places[number][turn])
            for number, row in done.items()
            if not isinstance(row, str) and turn < len(places[number])
        }
        for number, given in _ask(model, processor, asked, max_new_tokens).items():
            answered = done[number]
            if isinstance(given, str):
                done[number] = given
            elif not isinstance(answered, str):
                answered["messages"][places[number][turn]] = given
    for number, outcome in done.items():
        empty = not isinstance(outcome, str) and not places[number]
        yield f"sample {rows[number]['id']!a}: asks nothing" if empty else outcome


def _ask(
    model: PreTrainedModel, processor: ProcessorMixin, asked: dict[int, Row], max_new_tokens: int
) -> dict[int, Row | str]:
    """An answer to each, as a message, or why there is none."""
    results: dict[int, Row | str] = {}
    try:
        given = answers(model, processor, list(asked.values()), max_new_tokens=max_new_tokens) if asked else []
    except SampleError:
        problems = reading_problems(model, processor, list(asked.values()))
        bad = {number: problem for number, problem in zip(asked, problems, strict=True) if problem}
        good = {number: row for number, row in asked.items() if number not in bad}
        return {**bad, **_ask(model, processor, good, max_new_tokens)}
    for (number, row), answer in zip(asked.items(), given, strict=True):
        results[number] = _as_message(row, answer, max_new_tokens)
    return results
