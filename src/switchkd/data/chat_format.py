"""Which tokens are answers: chat templates rendered to text with marked answers, then tokenised with offsets.

The marks come from the template's `{% generation %}` blocks. One mask serves the cross-entropy and every distillation
term. Special tokens that somebody typed (`<image>`, `<|im_end|>`) are not control tokens: before rendering they are
broken in two by a character that no text contains, and the rendered text is tokenised piece by piece around these
breaks. (SentencePiece tokenizers may put their word-start mark at such a break.)
"""

import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from switchkd.data.answer_tokens import AnswerToken, locate
from switchkd.data.errors import DataError, SampleError
from switchkd.models.families import family_of_processor

logger = logging.getLogger(__name__)

#: Unicode noncharacters: they never occur in text that is meant for exchange.
_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
Spans = list[tuple[int, int]]

_PROBE = [
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "On a mat."}]},
]


@dataclass(frozen=True)
class Tokens:
    """A tokenised conversation: `is_answer[i]` says whether `input_ids[i]` belongs to an answer or closes one.

    `covers[i]` is what it covers of that answer, None where that is nothing but space.
    The last image, with the marks that belong to it, ends before token `images_end`.
    """

    input_ids: list[int]
    is_answer: list[bool]
    covers: list[AnswerToken | None]
    images_end: int = 0
    #: What the tokenizer does not know, in the order of the text.
    unknown: tuple[str, ...] = ()


class ChatFormat:
    """A processor's tokenizer with one chat template: canonical messages -> tokens that know whether they are answers.

    Picklable. Raises `DataError` for processors without a fast tokenizer or an image token.
    """

    def __init__(self, processor: ProcessorMixin, template: str) -> None:
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
        #: What a template writes for an image.
        self.image_token = image_token
        #: What stands for each visual token; another one in Gemma 3 and InternVL.
        self.image_token_id = int(processor.image_token_ids[0] or image_ids[0])
        self._visual_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        special = {token.content: index for index, token in added.items() if token.special}
        special |= {image_token: image_ids[0], self._visual_token: self.image_token_id}
        #: Ids that typed text must never become.
        self._special_ids = set(special.values())
        #: What stands for characters that the tokenizer does not know: that is text, although the token counts as a special one.
        self._unknown_id: int | None = tokenizer.unk_token_id
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        begins = tokenizer("").input_ids[:1]
        self._bos_ids: list[int] = begins if begins == [tokenizer.bos_token_id] else []

    def tokenize(
        self, messages: list[dict[str, Any]], placeholders: list[str], *, generation_prompt: bool = False
    ) -> Tokens:
        """Render canonical `messages`, put one of `placeholders` (what the processor writes for it) for each image, tokenise.

        The token that closes an answer counts as part of it, whether or not it stands inside the generation block. An answer whose message
        has `learned` false is no answer, and neither is a token that stands for unknown characters.
        Raises `DataError` if the template does not mark and close the answers; `SampleError` if image or special
        tokens come out in another number than the template wrote.
        """
        broken, mark = _break_typed(messages, self._special)
        text, spans = self._render(broken, generation_prompt)
        answers = ["".join(part["text"] for part in m["content"]) for m in broken if m["role"] == "assistant"]
        thinks = ["reasoning_content" in message for message in broken if message["role"] == "assistant"]
        if True in thinks:
            self._check_reasoning(text, broken, generation_prompt)
        if not generation_prompt:
            self._check_spans(text, spans, answers, thinks)
        text, spans, images_end = _expand(text, spans, self.image_token, placeholders)
        prefix = [] if text.startswith(self.tokenizer.bos_token or "\0") else self._bos_ids
        input_ids, offsets = list(prefix), [(0, 0) for _ in prefix]
        begin = 0
        for run in text.split(mark):
            encoded = self.tokenizer(run, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            input_ids += encoded.input_ids
            offsets += [(begin + start, begin + end) for start, end in encoded.offset_mapping]
            begin += len(run) + len(mark)
        is_unknown = [
            index == self._unknown_id and text[start:end].strip() != self.tokenizer.unk_token and start < end
            for index, (start, end) in zip(input_ids, offsets, strict=True)
        ]
        self._check_special(text.split(mark), prefix, input_ids, is_unknown)
        closes = [
            index in self._special_ids and index != self.image_token_id and not unknown
            for index, unknown in zip(input_ids, is_unknown, strict=True)
        ]
        learned = [message.get("learned") is not False for message in messages if message["role"] == "assistant"]
        kept = list(compress(spans, learned)) if len(spans) == len(learned) else spans
        is_answer = [
            answer and not unknown
            for answer, unknown in zip(_answer_mask(offsets, kept, closes), is_unknown, strict=True)
        ]
        covers: list[AnswerToken | None] = [None] * len(input_ids)
        if not generation_prompt:
            covers = _covers(text, mark, spans, answers, offsets, is_answer, closes)
        before_end = [index for index, (start, _) in enumerate(offsets, start=1) if start < images_end]
        unknown = tuple(text[slice(*offset)].strip() for offset in compress(offsets, is_unknown))
        return Tokens(input_ids, is_answer, covers, before_end[-1] if images_end else 0, unknown)

    def _check_special(self, runs: list[str], prefix: list[int], input_ids: list[int], is_unknown: list[bool]) -> None:
        """The special tokens must be those that the template wrote. Raises `SampleError` naming those that are not."""
        names = [name for run in runs for name in self._special.findall(run)]
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

    @property
    def closing_id(self) -> int:
        """The token that closes an answer."""
        tokens = self.tokenize(_PROBE[:2], [])
        return [index for index, closes in zip(tokens.input_ids, tokens.is_answer, strict=True) if closes][-1]

    def _render(self, messages: list[dict[str, Any]], generation_prompt: bool) -> tuple[str, Spans]:
        arguments: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        marks = re.search(r"\{%-?\s*generation\s*-?%\}", self.template) is not None
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=generation_prompt,
                **arguments,
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the chat template cannot render this conversation: {error}") from error
        texts, spans = rendered
        return texts[0], spans[0] if spans else []

    def _check_reasoning(self, text: str, messages: list[dict[str, Any]], generation_prompt: bool) -> None:
        """The template must write the reasoning of the last turn that has some; it may leave out what earlier turns thought."""
        last = [message["reasoning_content"] for message in messages if "reasoning_content" in message][-1].strip()
        without = [{name: message[name] for name in ("role", "content")} for message in messages]
        if text.count(last) == self._render(without, generation_prompt)[0].count(last):
            raise SampleError(
                "its answers have `reasoning_content`, which the chat template does not show, so it would be lost: choose a checkpoint "
                "whose template writes it, write it into the answers, or leave it out"
            )

    def _check_spans(self, text: str, spans: Spans, answers: list[str], thinks: list[bool]) -> None:
        """The template must have marked each assistant turn, in order, and nothing else; reasoning stands before the answer."""
        if answers and not spans:
            raise DataError("the chat template marks no answers: it needs {% generation %} blocks")
        if len(spans) != len(answers):
            raise DataError(f"the chat template marks {len(spans)} answers where the conversation has {len(answers)}")
        for (start, end), answer, with_reasoning in zip(spans, answers, thinks, strict=True):
            marked = self._special.sub("", text[start:end]).strip()
            if marked != answer.strip() and not (with_reasoning and marked.endswith(answer.strip())):
                raise DataError(f"the chat template marks {text[start:end]!r} where the answer is {answer!r}")


def choose_format(processor: ProcessorMixin) -> ChatFormat:
    """The chat format to train and ask with: the processor's own template if it marks and closes answers, else its family's.

    Save the one in use with the student, as `processor.chat_template = choose_format(processor).template`, so that it is asked as it was
    trained.

    Raises:
        DataError: if neither fits, with what to do.
    """
    known = ChatFormat(processor, "")
    own = getattr(processor, "chat_template", None) or known.tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    own_problem = "there is none"
    if own is not None:
        own_format = ChatFormat(processor, own)
        try:
            own_format.tokenize(_PROBE, [])
            return own_format
        except DataError as error:
            own_problem = str(error)
    family = family_of_processor(processor)
    added = {token.content for token in known.tokenizer.added_tokens_decoder.values()}
    chosen = None if family is None else family.choose_template(own, added)
    if chosen is None:
        raise DataError(
            f"the processor's chat template does not tell which tokens are answers ({own_problem}) and none of ours fits "
            "it; put {% generation %} and {% endgeneration %} around each answer and its end-of-turn token"
        )
    name, template = chosen
    family_format = ChatFormat(processor, template.replace("<image>", known.image_token))
    family_format.tokenize(_PROBE, [])
    _warn_once(f"using the {name} chat template of switchkd in place of the processor's own ({own_problem})")
    return family_format


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _break_typed(messages: list[dict[str, Any]], special: re.Pattern[str]) -> tuple[list[dict[str, Any]], str]:
    """The messages with every typed special token broken after its first character, and the character that breaks."""
    texts = "".join(part["text"] or "" for message in messages for part in message["content"])
    texts += "".join(message.get("reasoning") or "" for message in messages)
    mark = next((character for character in _BREAKS if character not in texts), None)
    if mark is None:
        raise SampleError("the text holds all of U+FDD0 to U+FDEF, which are not characters")

    def split(text: str) -> str:
        return special.sub(lambda match: match[0][0] + mark + match[0][1:], text)

    broken = []
    for message in messages:
        content: list[dict[str, str]] = []
        for part in message["content"]:
            if part["type"] == "image":
                content.append({"type": "image"})
            elif (
                content and content[-1]["type"] == "text"
            ):  # joined before the search: tokens may be typed in two parts
                content[-1]["text"] += part["text"]
            else:
                content.append({"type": "text", "text": part["text"]})
        for part in content:
            if part["type"] == "text":
                part["text"] = split(part["text"])
        broken.append({"role": message["role"], "content": content})
        if message.get("reasoning"):
            broken[-1]["reasoning_content"] = split(message["reasoning"])
    return broken, mark


def _expand(text: str, spans: Spans, image_token: str, placeholders: list[str]) -> tuple[str, Spans, int]:
    """Write the placeholders in the text and move the answer spans along; also where the last placeholder ends."""
    first, *rest = text.split(image_token)
    if len(rest) != len(placeholders):
        raise SampleError(f"the rendered conversation has {len(rest)} image marks for {len(placeholders)} images")
    ends = [match.end() for match in re.finditer(re.escape(image_token), text)]
    gained = [len(placeholder) - len(image_token) for placeholder in placeholders]

    def moved(position: int) -> int:
        return position + sum(gain for gain, end in zip(gained, ends, strict=True) if end <= position)

    expanded = first + "".join(placeholder + piece for placeholder, piece in zip(placeholders, rest, strict=True))
    return expanded, [(moved(start), moved(end)) for start, end in spans], moved(ends[-1]) if ends else 0


def _answer_mask(offsets: Spans, spans: Spans, closes: list[bool]) -> list[bool]:
    """Tokens that overlap an answer's span, and the special token that closes it."""
    mask = [False] * len(offsets)
    begin = 0
    for start, end in spans:
        while begin < len(offsets) and offsets[begin][1] < start:  # both go forward through the text
            begin += 1
        inside = []
        for index in range(begin, len(offsets)):
            first, last = offsets[index]
            if first > end:
                break
            # Tokenizers that trim offsets give a token of spaces no width: it lies where it ends.
            if first < end and last > start if first < last else start < last <= end:
                inside.append(index)
        if not inside:
            continue
        following = inside[-1] + 1
        if not any(closes[index] for index in inside):
            if following == len(offsets) or not closes[following]:
                raise DataError("the chat template does not close answers with a special token (eos or end-of-turn)")
            inside.append(following)
        for index in inside:
            mask[index] = True
    return mask


def _covers(
    text: str,
    mark: str,
    spans: Spans,
    answers: list[str],
    offsets: Spans,
    is_answer: list[bool],
    closes: list[bool],
) -> list[AnswerToken | None]:
    """For each token what it covers of its answer; nothing where a template writes special tokens inside an answer."""
    covers: list[AnswerToken | None] = [None] * len(offsets)
    index = 0
    ends = [*(start for start, _ in spans[1:]), len(text) + 1][: len(spans)]
    for number, ((start, own_end), end, answer) in enumerate(zip(spans, ends, answers, strict=True)):
        begin = text.rfind(answer.strip(), start, own_end)  # reasoning before it may hold it too
        if begin < 0:
            continue
        place = {"answer": number, "begin": begin, "end": begin + len(answer.strip())}
        while index < len(offsets) and offsets[index][0] < end:  # both go forward through the text
            if is_answer[index] and start <= offsets[index][0]:
                covers[index] = locate(text, offsets[index], mark=mark, closes=closes[index], **place)
            index += 1
    return covers
