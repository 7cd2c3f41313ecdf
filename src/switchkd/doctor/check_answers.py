"""Answer masks, targets and tokens, held against the text of the rows."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import AutoTokenizer

from switchkd.batch import TEACHER, Inputs
from switchkd.data.reader import Encoded, Reader
from switchkd.doctor.findings import Finding, Kind, Level, Sample
from switchkd.doctor.samples import Examined
from switchkd.models import Pathway
from switchkd.pairing.reading import OwnInputs
from switchkd.recipe.schema import Teacher
from switchkd.train.aligned_share import shares_by_words
from switchkd.train.open_teacher import located

#: Samples that are shown as text.
_SHOWN = 3
#: Of a piece of text that is shown, this many characters at each end.
_ENDS = 200
#: Rows whose answers are cut by both tokenizers.
_SEARCHED = 64


def samples(examined: Examined) -> list[Sample]:
    """Some rows as the student reads them, and what of them is learned."""
    reader = examined.context.run.reader
    shown = zip(examined.rows[:_SHOWN], examined.samples[:_SHOWN], strict=True)
    return [Sample(str(row["id"]), pieces(reader, sample.student)) for row, sample in shown]


def pieces(reader: Reader, sample: Encoded) -> list[tuple[Kind, str]]:
    """A sample, decoded: runs of prompt, of image tokens and of answers."""
    answers, image_token = set(sample.answers), reader.format.image_token_id
    kinds: list[tuple[Kind, int]] = [
        ("answer" if place in answers else "image" if token == image_token else "prompt", token)
        for place, token in enumerate(sample.tokens)
    ]
    shown: list[tuple[Kind, str]] = []
    for kind, run in groupby(kinds, key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        if kind == "image":
            shown.append((kind, f"<image ×{len(ids)}>"))
        else:
            text = _tokenizer(reader).decode(ids)
            shown.append((kind, text if len(text) <= 2 * _ENDS else f"{text[:_ENDS]} … {text[-_ENDS:]}"))
    return shown


def answers(examined: Examined) -> Iterator[Finding]:
    """Every sample has answers, the targets are these answers, predicted one token before, and nothing else is a target."""
    rows = examined.context.rows
    total, tokens = sum(rows["answers"]), sum(rows["length"])
    share = total / tokens
    level: Level = "failed" if total == 0 else "warning" if share > 0.9 else "ok"
    yield Finding(level, "answer mask", f"{total:,} of {tokens:,} tokens ({share:.1%}) are answers and carry the loss")
    for name, _, inputs in examined.models(examined.batch()):
        problem = _wrong_targets(examined.rows, inputs)
        detail = (
            problem
            or "each label is the token that follows, and only answers have labels, in every sample that was examined"
        )
        yield Finding("failed" if problem else "ok", f"{name}'s targets", detail)
    yield from _learned_text(examined)


def _wrong_targets(rows: list[dict[str, Any]], inputs: Inputs) -> str | None:
    width = inputs.tokens.shape[1]
    counts = torch.bincount(inputs.sample, minlength=len(rows))
    if len(empty := (counts == 0).nonzero().flatten().tolist()):
        first = rows[empty[0]]["id"]
        return f"{len(empty)} of {len(rows)} rows have no answer token, {first!a} first: the mask of the chat template is empty there"
    if bool((inputs.predicts // width != inputs.sample).any()) or bool((inputs.predicts % width == width - 1).any()):
        return "an answer is predicted from another sample, or from behind the end of its own"
    flat = inputs.tokens.flatten()
    if wrong := int((inputs.targets != flat[inputs.predicts + 1]).sum()):
        same = bool((inputs.targets == flat[inputs.predicts]).all())
        why = "they are not shifted: each is the token that predicts it" if same else "they are other tokens"
        return f"{wrong} of {len(inputs.targets)} targets differ from the token that follows: {why}"
    if padding := int((inputs.predicts % width + 1 >= inputs.lengths[inputs.sample]).sum()):
        return f"{padding} targets are on padding"
    return None


def _learned_text(examined: Examined) -> Iterator[Finding]:
    """Decoded, the answer tokens of a sample are its assistant's turns and nothing else; white space does not count."""
    tokenizer = _tokenizer(examined.context.run.reader)
    for row, sample in zip(examined.rows, examined.samples, strict=True):
        ids = [sample.student.tokens[place] for place in sample.student.answers]
        learned = _bare(tokenizer.decode(ids, skip_special_tokens=True))
        texts = _assistant_texts(row)
        wanted = _bare("".join(tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=True) for text in texts))
        if not wanted.startswith(learned):  # the end may be cut at max_length
            at = next(
                (i for i, (a, b) in enumerate(zip(learned, wanted, strict=False)) if a != b),
                min(map(len, (learned, wanted))),
            )
            detail = f"of row {row['id']!a} is {_around(learned, at)} where the assistant says {_around(wanted, at)}"
            yield Finding("warning", "text of the answers", detail)
            return
    yield Finding("ok", "text of the answers", f"is what the assistant says, in {len(examined.rows)} rows")


def _assistant_texts(row: dict[str, Any]) -> list[str]:
    """The assistant's turns."""
    turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return ["".join(part["text"] or "" for part in content) for content in turns]


def _bare(text: str) -> str:
    return "".join(text.split())


def _around(text: str, at: int) -> str:
    return repr("…" + text[max(at - 10, 0) : at + 20])


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _tokenizer(reader: Reader) -> Any:
    processor: Any = reader.processor
    return processor.tokenizer


def vocabulary(examined: Examined) -> Iterator[Finding]:
    """The ids that are compared, and the special ones on which model and processor must agree."""
    context = examined.context
    pair = context.pair
    heads = f"the student's head has {pair.student.head.rows:,} rows"
    if pair.teacher is not None:
        heads += f", the teacher's {pair.teacher.head.rows:,}"
    detail = (
        f"{pair.vocabulary:,} token ids are compared; {heads}: the others are padding, or not the other's, and left out"
    )
    yield Finding("ok", "vocabulary", detail)
    yield from _ids_beyond(examined)
    yield _image_token("student", pair.student, context.run.reader)
    reading = None if context.teacher is None else context.teacher.reading
    if isinstance(reading, OwnInputs) and pair.teacher is not None:
        yield _image_token("teacher", pair.teacher, reading.reader)
    yield _end_of_answers(examined)


def _ids_beyond(examined: Examined) -> Iterator[Finding]:
    """A tokenizer whose ids have gaps has some beyond the number of its tokens: nothing of a teacher reaches those."""
    known, teacher = examined.context.teacher, examined.context.pair.teacher
    compared = examined.context.run.reader.ids if known is None else known.vocabulary
    ids = _tokenizer(examined.context.run.reader).get_vocab()
    beyond = sorted((index, token) for token, index in ids.items() if isinstance(compared, int) and index >= compared)
    if beyond and teacher is not None:
        first = ", ".join(f"{token!r} ({index})" for index, token in beyond[:3])
        yield Finding(
            "warning",
            "ids beyond",
            f"{len(beyond)} of {len(ids):,} tokens have ids beyond the {compared:,} that are compared, {first} first: the tokenizer's ids "
            "have gaps. Answers with them are learned from the labels alone, never from the teacher",
        )


def _image_token(name: str, pathway: Pathway, reader: Reader) -> Finding:
    geometry = pathway.family.geometry
    expected, actual = geometry.image_token_id, reader.format.image_token_id
    name_of = _tokenizer(reader).convert_ids_to_tokens
    per = [(geometry.tokens_per_image, "visual tokens per image"), (geometry.tokens_per_tile, "visual tokens per tile")]
    counts = [f"{tokens} {label}" for tokens, label in per if tokens is not None]
    return Finding(
        "ok" if actual == expected else "failed",
        f"{name}'s image token",
        f"id {expected} ({name_of(expected)!r}) for the model, id {actual} ({name_of(actual)!r}) from the processor; "
        + (counts[0] if counts else "their number follows from the size of the image"),
    )


def _end_of_answers(examined: Examined) -> Finding:
    """Whether generation will stop where answers end."""
    sample = examined.samples[0].student
    learned = [sample.tokens[place] for place in sample.answers]
    eos = examined.context.pair.student.model.generation_config.eos_token_id
    stops = set(torch.tensor([] if eos is None else eos).reshape(-1).long().tolist())
    name_of = _tokenizer(examined.context.run.reader).convert_ids_to_tokens
    detail = f"generation stops at {', '.join(f'{stop} ({name_of(stop)!r})' for stop in sorted(stops)) or 'nothing'}"
    if stops & set(learned):
        return Finding("ok", "end of answers", f"{detail}, which is learned as the end of answers")
    return Finding(
        "warning",
        "end of answers",
        f"{detail}, and the answers of row {examined.rows[0]['id']!a} hold no such token: the student would not learn to stop. Set "
        f"eos_token_id of its generation_config.json to {learned[-1]}",
    )


def answer_tokens(examined: Examined) -> Iterator[Finding]:
    """What is compared are the same tokens: by the teacher's own tokenizer, or as the two texts were aligned."""
    teacher = examined.context.teacher
    if teacher is None or examined.context.pair.teacher is None or not examined.collator.teachers:
        return
    reading = teacher.reading
    yield _aligned(examined, reading) if isinstance(reading, OwnInputs) else _same_tokens(examined, teacher.section)


def _same_tokens(examined: Examined, teacher: Teacher) -> Finding:
    """One reading for both: the teacher's own tokenizer cuts every answer into the same tokens."""
    tokenizers = [
        _tokenizer(examined.context.run.reader),
        AutoTokenizer.from_pretrained(located(teacher), trust_remote_code=False),
    ]
    rows = examined.context.rows.select(range(min(len(examined.context.rows), _SEARCHED)))
    texts = dict.fromkeys(text for row in rows for text in _assistant_texts(row))
    count = 0
    for text in texts:
        ids = [_ids(tokenizer, text) for tokenizer in tokenizers]
        tokens = [tokenizer.convert_ids_to_tokens(own) for tokenizer, own in zip(tokenizers, ids, strict=True)]
        if ids[0] != ids[1] or tokens[0] != tokens[1]:
            shown = text if len(text) <= 60 else text[:60] + "…"
            cut = [
                " ".join(f"{token!r}:{index}" for index, token in zip(own[:8], of_own[:8], strict=True))
                for own, of_own in zip(ids, tokens, strict=True)
            ]
            detail = f"{shown!r} is {cut[0]} for the student and {cut[1]} for the teacher"
            return Finding("failed", "answer tokens", f"{detail}: their logits would be compared at other tokens")
        count += len(ids[0])
    return Finding("ok", "answer tokens", f"{count:,} tokens of answers are the same in both tokenizers")


def _aligned(examined: Examined, reading: OwnInputs) -> Finding:
    """Each has its own inputs: the answer tokens that are compared stand for the same text."""
    tokenizers = [_tokenizer(reader) for reader in (examined.context.run.reader, reading.reader)]
    compared = answers = 0
    for sample in examined.samples:
        sides = sample.student, sample.teachers[TEACHER].teacher
        for places in sample.teachers[TEACHER].compared:
            ids = [side.tokens[side.answers[n]] for side, n in zip(sides, places, strict=True) if side is not None]
            special = all(index in t.all_special_ids for index, t in zip(ids, tokenizers, strict=True))
            texts = [t.decode([index]).strip() for index, t in zip(ids, tokenizers, strict=True)]
            if not special and texts[0] != texts[1]:
                detail = (
                    f"{texts[0]!r} ({ids[0]}) of the student is compared with {texts[1]!r} ({ids[1]}) of the teacher"
                )
                return Finding("failed", "answer tokens", detail)
        compared, answers = compared + len(sample.teachers[TEACHER].compared), answers + len(sample.student.answers)
    share = (
        f"{compared} of {answers} answer tokens of the student are compared with the same text of the teacher; of all "
        f"{len(examined.context.rows):,} rows: {shares_by_words(examined.context.rows)}"
    )
    return Finding("ok" if compared else "failed", "answer tokens", share)
