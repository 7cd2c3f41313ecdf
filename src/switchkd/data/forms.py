"""The forms of rows that people bring → a list of turns, and the other keys that are read. `row_form` makes one row of it."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from switchkd.data.errors import DataError, SampleError

Row = dict[str, Any]

#: What can be read from columns of other names (`data.columns`).
COLUMNS = (
    "id", "question", "answer", "image", "images", "video", "videos", "system", "kind", "kinds", "messages", "conversations", "accepted",
    "metric", "teacher",
)  # fmt: skip
#: What may stand next to the turns in every form.
_BESIDE = ("id", "image", "images", "video", "videos", "system", "kind", "kinds", "accepted", "metric", "teacher")
#: Letters of the name of a teacher that a row is taught by.
LONGEST_TAG = 60
#: Lists of turns, as LLaVA and ShareGPT write them, and as OpenAI does.
_LISTS = ("conversations", "messages")
#: One question and one answer: VQA, ms-swift, TRL, alpaca. Of each a row has one.
_QUESTIONS = ("question", "query", "prompt", "instruction")
_ANSWERS = ("answer", "response", "completion", "output")
#: Lists that a table of text can only hold as JSON.
_LIST_COLUMNS = (*_LISTS, "texts", "images", "videos", "history", "kinds", "accepted")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise ValueError for a name that is none of ours, and for one column under two names."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise DataError(f"columns names {ours!r}, which is none of {', '.join(COLUMNS)}: our name comes first")
        if list(columns.values()).count(theirs) > 1:
            raise DataError(f"columns names the column {theirs!r} twice")


class Talk(NamedTuple):
    """One row, read as one of the forms."""

    form: str
    #: What its list of turns is called; in messages.
    name: str
    turns: list[Any]
    #: id, image, images, video, videos, system, kind, kinds, accepted, metric, teacher: where the row has them.
    columns: Row
    #: Every other key.
    rest: Row
    #: A form that need not mark where pictures stand: they are before the first question then.
    pictures_first: bool = True


def renamed(raw: Any, columns: Mapping[str, str]) -> Any:
    """The row with its columns under our names, as `columns` says (ours → the row's); what had such a name keeps it with a mark.

    A column that this row does not have is left out.
    """
    if not isinstance(raw, dict) or not columns:
        return raw
    given = {ours: raw[theirs] for ours, theirs in columns.items() if theirs in raw}
    taken = set(columns.values())
    rest = {f"{key} (another)" if key in columns else key: value for key, value in raw.items() if key not in taken}
    return rest | given


def read_form(raw: Row, columns: Mapping[str, str]) -> Talk:
    """The row as one of the forms.

    Args:
        raw: after `renamed`.
        columns: what was renamed; an answer without a question is then one to the picture alone.

    Raises:
        SampleError: it has none of them, or two.
    """
    raw = {key: _read_list(key, value) for key, value in raw.items()}
    turned = sorted((key for key in _LISTS if isinstance(raw.get(key), list)), key=lambda key: not raw[key])
    if len(turned) > 1 and raw[turned[1]]:
        raise SampleError("has both `conversations` and `messages`; keep one")
    if turned:
        key = turned[0]
        return _talk(raw, key, key, raw[key], {*turned})._replace(pictures_first=False)
    if isinstance(raw.get("texts"), list):
        return _talk(raw, "texts (The Cauldron)", "texts", _of_texts(raw["texts"]), {"texts"})
    asked = [key for key in _QUESTIONS if _given(raw.get(key))]
    if not asked and _given(raw.get("input")) and "instruction" in raw:
        asked = ["instruction"]
    answered = [key for key in _ANSWERS if raw.get(key) is not None]
    answered = answered or [key for key in ("answers", "accepted") if raw.get(key)][:1]
    if len(asked) > 1 or (asked and len(answered) > 1):
        named = ", ".join(f"`{key}`" for key in (asked if len(asked) > 1 else answered))
        raise SampleError(f"has {named}: name the one that is meant with data.columns: {{question: …, answer: …}}")
    if not answered or not (asked or ("answer" in columns and "question" not in columns)):
        raise SampleError(
            "unknown format; looked for a list `conversations` (LLaVA) or a list `messages` (with `images`), for `texts`, or for one of "
            f"{', '.join(_QUESTIONS)} with one of {', '.join(_ANSWERS)}, but the row has the keys {', '.join(map(str, raw)) or '(none)'}. "
            "Columns of other names: data.columns: {question: …, answer: …, image: …}"
        )
    question = asked[0] if asked else None
    read = {*(key for key in ("question",) if question is None), question, answered[0], "history"}
    if question == "instruction":
        read.add("input")
    form = f"{question or 'a picture'} and {answered[0]}"
    return _talk(raw, form, "messages", _of_question(raw, question, answered[0]), read)


def _talk(raw: Row, form: str, name: str, turns: list[Any], read: set[Any]) -> Talk:
    columns = {key: raw[key] for key in _BESIDE if key in raw}
    return Talk(form, name, turns, columns, {key: value for key, value in raw.items() if key not in (*read, *columns)})


def _given(value: Any) -> bool:
    return value is not None and value != "" and value != []


def _read_list(key: str, value: Any) -> Any:
    """A list that is written as JSON text, in the columns that hold lists."""
    if key not in _LIST_COLUMNS or not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"`{key}` is no JSON list: {error}") from error


def _of_texts(texts: list[Any]) -> list[Row]:
    turns: list[Row] = []
    for pair in texts:
        if not isinstance(pair, dict) or not isinstance(pair.get("user"), str):
            raise SampleError("each of `texts` needs a `user` and an `assistant` of text")
        rest = {key: value for key, value in pair.items() if key not in ("user", "assistant")}
        turns += [
            {"role": "user", "content": pair["user"]},
            {"role": "assistant", "content": pair.get("assistant")} | rest,
        ]
    return turns


def _of_question(raw: Row, question: str | None, answer: str) -> list[Row]:
    turns: list[Row] = []
    for pair in raw.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise SampleError("each of `history` must be a list of a question and its answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked = "" if question is None else raw.get(question)
    if isinstance(asked, list):  # of messages, as TRL has them: of these, answers are read and not learned
        turns += [
            turn | {"loss": False} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn
            for turn in asked
        ]
    else:
        more = raw.get("input") if question == "instruction" else None
        turns.append({"role": "user", "content": "\n".join(str(text) for text in (asked, more) if _given(text))})
    said = raw[answer]
    if isinstance(said, list) and all(isinstance(turn, dict) and "role" in turn for turn in said):
        return turns + said
    return [*turns, {"role": "assistant", "content": _one_answer(said, answer)}]


def answer_texts(answers: list[Any]) -> list[str]:
    """Of answers as lists hold them: texts, numbers, or objects with `answer`."""
    return [str(one.get("answer") if isinstance(one, dict) else one) for one in answers]


def _one_answer(value: Any, key: str) -> str:
    """The answer as text: of several, the one that all say; of several accepted ones, the one that most say."""
    if isinstance(value, list):
        answers = Counter(answer_texts(value))
        if len(answers) != 1 and key != "accepted":
            raise SampleError(
                f"`{key}` holds {len(answers)} answers that differ: name the one to learn with data.columns: {{answer: …}}, and all that "
                f"are right with {{accepted: {key}}}"
            )
        return answers.most_common(1)[0][0]
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return str(value)
    if not isinstance(value, str):
        raise SampleError(f"`{key}` must be text, a number or a list of these, not {value!a:.80}")
    return value
