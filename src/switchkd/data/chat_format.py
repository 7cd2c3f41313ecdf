"""Which tokens are answers: a chat template's rendering, tokenised with offsets.

The template is the checkpoint's own wherever it can be used; `answer_spans` finds the answers in what it writes. One mask serves the
cross-entropy and every distillation term. Special tokens that somebody typed (`<image>`, `<|im_end|>`) are not control tokens: before
rendering they are broken in two by a character that no text contains, and the rendered text is tokenised piece by piece around these
breaks. (SentencePiece tokenizers may put their word-start mark at such a break.)
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress, groupby, pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from switchkd import rendering
from switchkd.data.answer_spans import Message, Render, find_answered, find_asked
from switchkd.data.answer_tokens import AnswerToken, answer_covers, answer_mask
from switchkd.data.errors import DataError, SampleError, TemplateLimitError
from switchkd.data.placeholders import expand, no_videos
from switchkd.models.families import family_of_processor
from switchkd.names import Kind

#: Unicode noncharacters: they never occur in text that is meant for exchange.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
#: How canonical messages call what templates know by another name.
_FIELDS = {"reasoning": "reasoning_content"}
#: What a part of a message looks like where a template writes it out as data.
_WRITTEN_OUT = re.compile(r"""["']type["']: ?["'](text|image)["']""")
_MARKS = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")


@dataclass(frozen=True)
class Tokens:
    """A tokenised conversation: `is_answer[i]` says whether `input_ids[i]` belongs to an answer or closes one.

    `covers[i]` is what it covers of that answer, None where that is nothing but space.
    The last image or video, which of the two `last` says, ends before token `images_end`, with the marks that belong to it.
    """

    input_ids: list[int]
    is_answer: list[bool]
    covers: list[AnswerToken | None]
    images_end: int = 0
    last: Kind = "image"
    #: What the tokenizer does not know, in the order of the text.
    unknown: tuple[str, ...] = ()


class ChatFormat:
    """A processor's tokenizer with one chat template: canonical messages -> tokens that know whether they are answers.

    Picklable. Raises `DataError` for processors without a fast tokenizer or an image token.

    Args:
        processor: the model's.
        template: in Jinja; it takes the contents of messages as lists of parts.
        name: what the template is called in messages.
        problem: why it stands in the place of the processor's own; None for that one.
    """

    def __init__(
        self, processor: ProcessorMixin, template: str, *, name: str = "own", problem: str | None = None
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
            raise DataError(
                f"{type(processor).__name__} needs a fast tokenizer (tokenizer.json) to find answers by offsets"
            )
        added = tokenizer.added_tokens_decoder
        image_token = getattr(processor, "image_token", None)
        image_ids = [index for index, token in added.items() if token.content == image_token]
        if not isinstance(image_token, str) or not image_ids:
            raise DataError(f"{type(processor).__name__}: {image_token!a} is no added token of its tokenizer")
        self.tokenizer: Any = tokenizer
        self.template = template
        self.name = name
        self.problem = problem
        #: Conversations that it cannot write, and why: see `refusals`.
        self.refused: dict[str, str] = {}
        self._family = family_of_processor(processor)
        #: What a template writes for an image.
        self.image_token = image_token
        #: What stands for each visual token; another one in Gemma 3 and InternVL.
        self.image_token_id = int(processor.image_token_ids[0] or image_ids[0])
        self.visual_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        #: Why there are no videos; None where the processor reads them.
        self.no_videos = no_videos(processor)
        #: What a template writes for a video.
        self.video_token: str | None = None if self.no_videos else str(getattr(processor, "video_token", ""))
        #: What stands for each visual token of a video; None where its frames enter as images.
        self.video_token_id: int | None = None
        if self._family is not None and self._family.video_inputs and self.video_token is not None:
            self.video_token_id = {token.content: index for index, token in added.items()}[self.video_token]
        special = {token.content: index for index, token in added.items() if token.special}
        if tokenizer.eos_token is not None:
            special[tokenizer.eos_token] = tokenizer.eos_token_id
        special |= {image_token: image_ids[0], self.visual_token: self.image_token_id}
        #: Ids that typed text must never become.
        self._special_ids = set(special.values())
        #: What stands for characters that the tokenizer does not know: that is text, although the token counts as a special one.
        self._unknown_id: int | None = tokenizer.unk_token_id
        marks = {*special, *([self.video_token] if self.video_token else [])}  # which need not be a token
        self._special = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
        begins = tokenizer("").input_ids[:1]
        self._bos_ids: list[int] = begins if begins == [tokenizer.bos_token_id] else []

    @property
    def saved(self) -> str:
        """The template as it is written into files: other engines cannot read `{% generation %}` marks."""
        return _MARKS.sub(r"{#\1 \2#}", self.template)

    @property
    def described(self) -> str:
        """Which template it is, and how answers end in it."""
        which = (
            "the checkpoint's own"
            if self.problem is None
            else f"{self.name}, in place of the checkpoint's own ({self.problem})"
        )
        if self.closing is not None:
            return f"{which}; {self.closing} closes an answer"
        return f"{which}; it writes nothing to close an answer: {self.ending} is learned behind the last one of a row"

    @cached_property
    def closing(self) -> str | None:
        """The special token that the template writes behind an answer; None where it writes none."""
        found = find_answered(self.render, PROBES["text"], _NONCHARACTERS[0], None, "")
        place = found.spans[-1].text
        behind = self._special.search(found.text, place[1] if place else len(found.text))
        return behind[0] if behind else None

    @property
    def ending(self) -> str:
        """The token that closes an answer: the template's, or the tokenizer's eos token where the template writes none.

        Raises:
            DataError: where there is neither.
        """
        ending = self.closing or self.tokenizer.eos_token
        if ending is None:
            raise DataError(
                "the chat template closes answers with no special token, and the tokenizer has no eos token: nothing would teach a model "
                "to stop. Set tokenizer.eos_token"
            )
        return str(ending)

    @property
    def closing_id(self) -> int:
        """The id of the token that closes an answer."""
        return int(self.tokenizer.convert_tokens_to_ids(self.ending))

    def tokenize(
        self,
        messages: list[Message],
        placeholders: list[str],
        videos: list[str] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        generation_prompt: bool = False,
    ) -> Tokens:
        """Render canonical `messages`, put one of `placeholders` (what the processor writes for it) for each image, tokenise.

        `videos` is the same for each video.

        A conversation begins with what asks for its last answer, token for token. The token that closes an answer counts as part of it.
        An answer whose message has `learned` false is no answer, and neither is a token that stands for unknown characters.
        Raises `DataError` if the template cannot write the conversation or its answers are not found in it; `SampleError` if image
        or special tokens come out in another number than the template wrote.
        """
        mark, hole = _unused(messages, tools)
        broken, broken_tools = (
            self._broken(messages, mark),
            None if tools is None else _in_strings(tools, self._break(mark)),
        )
        render = partial(self.render, tools=broken_tools)
        if generation_prompt:
            found = find_asked(render, broken, hole, self.closing)
        else:
            found = find_answered(render, broken, hole, self.closing, self.ending)
        if any("reasoning_content" in message for message in broken):
            _check_reasoning(render, broken, found.text, asked=generation_prompt)
        written: dict[Kind, tuple[str | None, list[str]]] = {
            "image": (self.image_token, placeholders),
            "video": (self.video_token, videos or []),
        }
        found, images_end, last = expand(found, written)
        input_ids, offsets = self._encode(found.text, mark, found.prompt)
        is_unknown = [
            index == self._unknown_id and found.text[start:end].strip() != self.tokenizer.unk_token and start < end
            for index, (start, end) in zip(input_ids, offsets, strict=True)
        ]
        self._check_special(found.text, mark, input_ids, is_unknown)
        learned = [message.get("learned") is not False for message in messages if message["role"] == "assistant"]
        inside = answer_mask(found.text, list(compress(found.spans, learned)), offsets)
        is_answer = [answer and not unknown for answer, unknown in zip(inside, is_unknown, strict=True)]
        closes = [index in self._special_ids for index in input_ids]
        covers = answer_covers(found, mark, offsets, is_answer, closes)
        before_end = [index for index, (start, _) in enumerate(offsets, start=1) if start < images_end]
        unknown = tuple(found.text[slice(*offset)].strip() for offset in compress(offsets, is_unknown))
        return Tokens(input_ids, is_answer, covers, before_end[-1] if images_end else 0, last, unknown)

    def render(self, messages: list[Message], asked: bool, tools: list[dict[str, Any]] | None = None) -> str:
        """What the template writes, as the processor hands it to the tokenizer, with one image token for each image."""
        arguments: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        try:
            text = rendering.render(
                self.template, conversations=[messages], tools=tools, add_generation_prompt=asked, **arguments
            )
        except rendering.LimitError as error:
            raise TemplateLimitError(
                f"the chat template {error}, which no conversation needs: do not trust its checkpoint, or give another template with "
                "data.template: FILE"
            ) from error
        except rendering.TemplateError as error:
            raise DataError(f"the chat template cannot render this conversation: {error}") from error
        if self._family is not None:
            text = self._family.as_processed(text, self.image_token, self.tokenizer.bos_token or "", asked=asked)
        return text

    def _broken(self, messages: list[Message], mark: str) -> list[Message]:
        """The messages as the template takes them, with every typed special token broken after its first character."""
        broken = []
        for message in messages:
            rest = {_FIELDS.get(key, key): value for key, value in message.items() if value is not None}
            for name in ("content", "learned"):
                rest.pop(name, None)
            parts = [{"type": part["type"]} if part["type"] != "text" else dict(part) for part in message["content"]]
            for run in _runs(parts):  # searched as one: tokens may be typed in two parts
                cuts = [match.start() + 1 for match in self._special.finditer("".join(part["text"] for part in run))]
                begin = 0
                for part in run:
                    end = begin + len(part["text"])
                    places = [0, *(cut - begin for cut in cuts if begin <= cut < end), len(part["text"])]
                    pieces = [part["text"][first:last] for first, last in pairwise(places)]
                    part["text"], begin = mark.join(pieces), end
            parts = [self._video_part if part["type"] == "video" else part for part in parts]
            broken.append({**_in_strings(rest, self._break(mark)), "content": parts})
        return broken

    @cached_property
    def _video_part(self) -> dict[str, Any]:
        """A video as the template takes it: as the text of its token where the template itself writes none, as SmolVLM's."""
        asked = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}
        try:
            if self.video_token is None or self.render([asked], True).count(self.video_token) == 1:
                return {"type": "video"}
        except TemplateLimitError:
            raise
        except DataError:  # it refuses such parts
            pass
        return {"type": "text", "text": self.video_token}

    def _break(self, mark: str) -> Any:
        return lambda text: self._special.sub(lambda match: match[0][0] + mark + match[0][1:], text)

    def _encode(self, text: str, mark: str, prompt: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and offsets. Where a token would reach over the end of the prompt, the text is broken there: an answer begins anew."""
        breaks = [match.span() for match in re.finditer(mark, text)]
        input_ids, offsets = self._encode_runs(text, breaks)
        if not any(last == prompt for _, last in offsets) or any(first < prompt < last for first, last in offsets):
            input_ids, offsets = self._encode_runs(text, sorted([*breaks, (prompt, prompt)]))
        return input_ids, offsets

    def _encode_runs(self, text: str, breaks: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        input_ids = [] if text.startswith(self.tokenizer.bos_token or "\0") else list(self._bos_ids)
        offsets = [(0, 0) for _ in input_ids]
        begin = 0
        for first, last in [*breaks, (len(text), len(text))]:
            run = self.tokenizer(
                text[begin:first], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            input_ids += run.input_ids
            offsets += [(begin + start, begin + end) for start, end in run.offset_mapping]
            begin = last
        return input_ids, offsets

    def _check_special(self, text: str, mark: str, input_ids: list[int], is_unknown: list[bool]) -> None:
        """The special tokens must be those that the template wrote. Raises `SampleError` naming those that are not."""
        names = [name for run in text.split(mark) for name in self._special.findall(run)]
        prefix = [] if text.startswith(self.tokenizer.bos_token or "\0") else self._bos_ids
        written = Counter([*prefix, *self.tokenizer.convert_tokens_to_ids(names)])
        known = (index for index, unknown in zip(input_ids, is_unknown, strict=True) if not unknown)
        found = Counter(index for index in known if index in self._special_ids)
        if found != written:
            differ = sorted(index for index in found.keys() | written.keys() if found[index] != written[index])
            listed = ", ".join(
                f"{found[index]} {self.tokenizer.convert_ids_to_tokens(index)!a} where {written[index]} are written"
                for index in differ
            )
            raise SampleError(f"the tokenizer reads some of the text as special tokens: {listed}")
        if True in is_unknown and self._unknown_id in written:
            raise SampleError(
                f"its tokenizer reads characters that it does not know as {self.tokenizer.unk_token}, which the chat template writes too: "
                "give the tokenizer an unknown token of its own"
            )

    def refusals(self) -> dict[str, str]:
        """Which of the probes the template does not serve, and why. Raises DataError if it takes too much time or memory."""
        refused = {}
        for probe in PROBES:
            try:
                self.check(probe)
            except TemplateLimitError:
                raise
            except DataError as error:
                refused[probe] = str(error)
        return refused

    def check(self, probe: str) -> None:
        """Raise DataError unless the template serves one of the probes.

        Every message must stand in what it writes, answers must be found and closed, and what asks for the last answer must be the
        beginning of what is learned, token for token.
        """
        messages = PROBES[probe]
        images = sum(part["type"] == "image" for message in messages for part in message["content"])
        placeholders = [self.visual_token] * images
        text = find_answered(self.render, messages, _NONCHARACTERS[0], self.closing, self.ending).text
        if _WRITTEN_OUT.search(text):
            raise DataError("the chat template writes the parts of a message out as data: it is one for text alone")
        for message in messages:
            for part in message["content"]:
                if part["type"] == "text" and text.count(part["text"]) != 1:
                    raise DataError(
                        f"the chat template writes what the {message['role']} says {text.count(part['text'])} times"
                    )
        learned = self.tokenize(messages, placeholders)
        asked = self.tokenize(messages[:-1], placeholders, generation_prompt=True)
        if learned.input_ids[: len(asked.input_ids)] != asked.input_ids:
            raise DataError(
                f"the chat template asks for an answer by {self._shown(asked.input_ids)}, and what is learned begins with "
                f"{self._shown(learned.input_ids[: len(asked.input_ids)])}"
            )
        if any(learned.is_answer[: len(asked.input_ids)]) and "turns" not in probe:
            raise DataError("the chat template marks a part of the question as an answer")

    def _shown(self, ids: list[int]) -> str:
        return f"…{self.tokenizer.decode(ids[-12:])!r} ({len(ids)} tokens, the last ones {ids[-4:]})"


def _said(role: str, *parts: str) -> Message:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


#: Conversations that templates are tried with; the first ones must be possible.
PROBES: dict[str, list[Message]] = {
    "text": [_said("user", "What is it?"), _said("assistant", "A cat.")],
    "one image": [_said("user", "image", "What is it?"), _said("assistant", "A cat.")],
    "several images": [_said("user", "image", "image", "Are they alike?"), _said("assistant", "Not at all.")],
    "two turns": [
        _said("user", "What is it?"),
        _said("assistant", "A cat."),
        _said("user", "Where is it?"),
        _said("assistant", "On a mat."),
    ],
    "system": [_said("system", "Be brief."), _said("user", "What is it?"), _said("assistant", "A cat.")],
}
NEEDED = ("text", "one image")


def _unused(messages: list[Message], tools: Any) -> list[str]:
    """Two characters that stand nowhere in a conversation."""
    written = json.dumps([messages, tools], ensure_ascii=False, default=str)
    unused = [character for character in _NONCHARACTERS if character not in written]
    if len(unused) < 2:
        raise SampleError("the text holds all of U+FDD0 to U+FDEF, which are not characters")
    return unused[:2]


def _runs(parts: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Parts of text that follow one another."""
    return (list(run) for is_text, run in groupby(parts, key=lambda part: part["type"] == "text") if is_text)


def _in_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A value with each string inside it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _in_strings(item, change) for key, item in value.items()}
    return [_in_strings(item, change) for item in value] if isinstance(value, list) else value


def _check_reasoning(render: Render, messages: list[Message], text: str, *, asked: bool) -> None:
    """The template must write the reasoning of the last turn that has some; it may leave out what earlier turns thought."""
    last = [message["reasoning_content"] for message in messages if "reasoning_content" in message][-1].strip()
    without = [{name: message[name] for name in ("role", "content")} for message in messages]
    if text.count(last) == render(without, asked).count(last):
        raise SampleError(
            "its answers have `reasoning_content`, which the chat template does not show, so it would be lost: choose a checkpoint "
            "whose template writes it, write it into the answers, or leave it out"
        )
