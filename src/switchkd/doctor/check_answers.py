"""Answer masks, labels and tokens, held against the text of the rows."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import AutoTokenizer

from switchkd.data.collate import Collator
from switchkd.doctor.findings import Finding, Kind, Level, Sample
from switchkd.doctor.looked_at import SEARCHED, collate, readers, some_rows
from switchkd.models import Pathway
from switchkd.pairing.pair_collate import PairCollator
from switchkd.train.stage import OpenStage
from switchkd.types import IGNORE_INDEX, Batch, answer_targets

#: Rows that are shown as text.
_SHOWN = 3
#: Of a piece of text that is shown, this many characters at each end.
_ENDS = 200


def samples(opened: OpenStage) -> list[Sample]:
    """The first rows as the student reads them, and what of them is learned."""
    rows = some_rows(opened)[:_SHOWN]
    tokenizer = opened.session.processor.tokenizer
    return [Sample(str(row["id"]), pieces(tokenizer, collate(opened, [row]), _image_token(opened))) for row in rows]


def pieces(tokenizer: Any, batch: Batch, image_token: int) -> list[tuple[Kind, str]]:
    """The first row of `batch`, decoded: runs of prompt, of image tokens and of answers."""
    read = batch["attention_mask"][0].bool()
    tokens = zip(batch["input_ids"][0][read].tolist(), batch["labels"][0][read].tolist(), strict=True)
    shown: list[tuple[Kind, str]] = []
    for kind, run in groupby(tokens, key=lambda pair: _kind(pair[0], pair[1], image_token)):
        ids = [token for token, _ in run]
        if kind == "image":
            shown.append((kind, f"<image ×{len(ids)}>"))
        else:
            text = tokenizer.decode(ids)
            shown.append((kind, text if len(text) <= 2 * _ENDS else f"{text[:_ENDS]} … {text[-_ENDS:]}"))
    return shown


def _kind(token: int, label: int, image_token: int) -> Kind:
    return "answer" if label != IGNORE_INDEX else "image" if token == image_token else "prompt"


def answers(opened: OpenStage) -> Iterator[Finding]:
    """Every row has answers, the labels are these answers, not shifted, and nothing else is labelled."""
    total, tokens = sum(opened.rows["answer_tokens"]), sum(opened.rows["length"])
    share = total / tokens
    level: Level = "failed" if total == 0 else "warning" if share > 0.9 else "ok"
    yield Finding(level, "answer mask", f"{total:,} of {tokens:,} tokens ({share:.1%}) are answers and carry the loss")
    rows = some_rows(opened)
    for name, _, batch in readers(opened, collate(opened, rows)):
        problem = _wrong_labels(rows, batch)
        detail = problem or "are the tokens themselves, not shifted, on answers only: in every row that was looked at"
        yield Finding("failed" if problem else "ok", f"{name}'s labels", detail)
    yield from _learned_text(opened, rows)


def _wrong_labels(rows: list[dict], batch: Batch) -> str | None:
    labels, ids = batch["labels"], batch["input_ids"]
    labelled = labels != IGNORE_INDEX
    if empty := [str(row["id"]) for row, of_row in zip(rows, labelled[:, 1:], strict=True) if not of_row.any()]:
        return f"{len(empty)} of {len(rows)} rows have no answer token, {empty[0]!a} first: the mask of the chat template is empty there"
    if wrong := int((labelled & (labels != ids)).sum()):
        early = bool((labels[:, :-1] == ids[:, 1:])[labelled[:, :-1]].all())
        why = "they are shifted by one already, and the pathway shifts" if early else "they are other tokens"
        return f"{wrong} of {int(labelled.sum())} labels differ from the token at their place: {why}"
    if padding := int((labelled & (batch["attention_mask"] == 0)).sum()):
        return f"{padding} labels are on padding"
    return None


def _learned_text(opened: OpenStage, rows: list[dict]) -> Iterator[Finding]:
    """Decoded, the labels of a row are its assistant's turns and nothing else; white space does not count."""
    tokenizer = opened.session.processor.tokenizer
    for row in rows:
        labels = collate(opened, [row])["labels"][0]
        found = _bare(tokenizer.decode(labels[labels != IGNORE_INDEX], skip_special_tokens=True))
        said = _said(row)
        wanted = _bare("".join(tokenizer.decode(_ids(tokenizer, text), skip_special_tokens=True) for text in said))
        if not wanted.startswith(found):  # the end may be cut at max_length
            at = next(
                (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
                min(map(len, (found, wanted))),
            )
            detail = f"of row {row['id']!a} is {_around(found, at)} where the assistant says {_around(wanted, at)}"
            yield Finding("warning", "text of the labels", detail)
            return
    yield Finding("ok", "text of the labels", f"is what the assistant says, in {len(rows)} rows")


def _said(row: dict) -> list[str]:
    """The assistant's turns."""
    turns = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    return ["".join(part["text"] or "" for part in content) for content in turns]


def _bare(text: str) -> str:
    return "".join(text.split())


def _around(text: str, at: int) -> str:
    return repr("…" + text[max(at - 10, 0) : at + 20])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def vocabulary(opened: OpenStage) -> Iterator[Finding]:
    """The ids that are compared, and the special ones on which model and processor must agree."""
    real, student = opened.pair.vocabulary, opened.pair.student
    heads = f"the student's head has {student.head.rows:,} rows"
    if opened.pair.teacher is not None:
        heads += f", the teacher's {opened.pair.teacher.head.rows:,}"
    detail = f"{real:,} token ids are compared; {heads}: the others are padding, or not the other's, and left out"
    yield Finding("ok", "vocabulary", detail)
    yield _image_token_of("student", student, opened.session.collator)
    if isinstance(opened.collator, PairCollator) and opened.pair.teacher is not None:
        yield _image_token_of("teacher", opened.pair.teacher, opened.collator.teacher)
    yield _end_of_answers(opened)


def _image_token_of(name: str, pathway: Pathway, collator: Collator) -> Finding:
    geometry = pathway.family.geometry(pathway.model.config)
    expected, found = geometry["image token id"], collator.format.image_token_id
    named = collator.processor.tokenizer.convert_ids_to_tokens
    fixed = [f"{geometry[key]} {key}" for key in geometry if key.startswith("visual tokens")]
    return Finding(
        "ok" if found == expected else "failed",
        f"{name}'s image token",
        f"id {expected} ({named(expected)!r}) for the model, id {found} ({named(found)!r}) from the processor; "
        + (fixed[0] if fixed else "their number follows from the size of the image"),
    )


def _end_of_answers(opened: OpenStage) -> Finding:
    """Whether generation will stop where answers end."""
    row = some_rows(opened)[0]
    labels = collate(opened, [row])["labels"][0]
    learned = set(labels[labels != IGNORE_INDEX].tolist())
    eos = opened.pair.student.model.generation_config.eos_token_id
    stops = set(torch.tensor([] if eos is None else eos).reshape(-1).long().tolist())
    named = opened.session.processor.tokenizer.convert_ids_to_tokens
    detail = f"generation stops at {', '.join(f'{stop} ({named(stop)!r})' for stop in sorted(stops)) or 'nothing'}"
    if stops & learned or not learned:
        return Finding("ok", "end of answers", f"{detail}, which is learned as the end of answers")
    return Finding(
        "warning",
        "end of answers",
        f"{detail}, and the answers of row {row['id']!a} hold no such token: the student would not learn to stop. Set "
        f"eos_token_id of its generation_config.json to {labels[labels != IGNORE_INDEX][-1].item()}",
    )


def answer_tokens(opened: OpenStage) -> Iterator[Finding]:
    """What is compared are the same tokens: by the teacher's own tokenizer, or as the two texts were aligned."""
    if opened.pair.teacher is None:
        return
    if isinstance(opened.collator, PairCollator):
        yield _aligned(opened, opened.collator)
    else:
        yield _same_tokens(opened)


def _same_tokens(opened: OpenStage) -> Finding:
    """One batch for both: the teacher's own tokenizer cuts every answer into the same tokens."""
    teacher = opened.session.recipe.teacher
    assert teacher is not None
    ours = opened.session.processor.tokenizer
    theirs = AutoTokenizer.from_pretrained(teacher.path, trust_remote_code=False)
    rows = opened.rows.select(range(min(len(opened.rows), SEARCHED)))
    texts = dict.fromkeys(text for row in rows for text in _said(row))
    count = 0
    for text in texts:
        mine, other = _ids(ours, text), _ids(theirs, text)
        if mine != other or ours.convert_ids_to_tokens(mine) != theirs.convert_ids_to_tokens(other):
            shown = text if len(text) <= 60 else text[:60] + "…"
            detail = f"{shown!r} is {_cut(ours, mine)} for the student and {_cut(theirs, other)} for the teacher"
            return Finding("failed", "answer tokens", f"{detail}: their logits would be compared at other tokens")
        count += len(mine)
    return Finding("ok", "answer tokens", f"{count:,} tokens of answers are the same in both tokenizers")


def _aligned(opened: OpenStage, collator: PairCollator) -> Finding:
    """Each has its own batch: the answer tokens that are compared stand for the same text."""
    rows = some_rows(opened)
    batch = opened.collator(rows)
    sides = ((batch["labels"], collator.student), (batch["teacher"]["labels"], collator.teacher))
    (ours, mine), (theirs, other) = ((answer_targets(labels), side.processor.tokenizer) for labels, side in sides)
    for first, second in batch["aligned"].tolist():
        ids = int(ours[first]), int(theirs[second])
        special = ids[0] in mine.all_special_ids and ids[1] in other.all_special_ids
        texts = mine.decode([ids[0]]).strip(), other.decode([ids[1]]).strip()
        if not special and texts[0] != texts[1]:
            detail = f"{texts[0]!r} ({ids[0]}) of the student is compared with {texts[1]!r} ({ids[1]}) of the teacher"
            return Finding("failed", "answer tokens", detail)
    share = f"{len(batch['aligned'])} of {len(ours)} answer tokens of the student are compared with the same text of the teacher"
    return Finding("ok" if len(batch["aligned"]) else "failed", "answer tokens", share)


def _cut(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(
        f"{token!r}:{index}" for index, token in zip(ids[:8], tokenizer.convert_ids_to_tokens(ids[:8]), strict=True)
    )


def _image_token(opened: OpenStage) -> int:
    return int(opened.collator.format.image_token_id)
