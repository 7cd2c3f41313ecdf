"""Data whose answers a model writes anew: sequence-level distillation, as data."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.console import progress
from switchkd.data.answer_file import AnswerFile
from switchkd.data.errors import SampleError
from switchkd.data.llava_rows import Converted
from switchkd.data.rewriting import Row, before, said
from switchkd.evaluate.generate import answers, reading_problems


def fingerprints(model: PreTrainedModel, rows: Dataset) -> dict[str, str]:
    """Digests of the weights that answer and of what they are asked: what answers depend on."""
    weights, asked = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for row in rows.select_columns(["id", "source", "messages"]):
        asked.update(json.dumps(row, sort_keys=True).encode(errors="surrogatepass"))
    return {"teacher": weights.hexdigest(), "rows": f"{len(rows)} rows ({asked.hexdigest()})"}


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


def _answered(
    model: PreTrainedModel, processor: ProcessorMixin, rows: list[Row], max_new_tokens: int
) -> Iterator[Row | str]:
    """Each row with the model's answers, or why it is left out."""
    done: dict[int, Row | str] = {}
    for number, row in enumerate(rows):
        done[number] = row["problem"] or {**row, "messages": list(row["messages"])}
    places = [
        [place for place, message in enumerate(row["messages"]) if message["role"] == "assistant"] for row in rows
    ]
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
        if answer.truncated:
            results[number] = f"sample {row['id']!a}: an answer had not ended after {max_new_tokens} tokens"
        else:
            results[number] = said(answer.text) if answer.text else f"sample {row['id']!a}: an answer is empty"
    return results
