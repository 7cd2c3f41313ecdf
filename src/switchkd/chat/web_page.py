"""A page in the browser: the models of a panel talk about the same pictures, side by side.

Needs the extra `web`. What models and users write is shown in text boxes and labels, which cannot be anything but text.
"""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# first, because it says where gradio keeps uploads
from switchkd.chat.uploads import HOTTEST, UPLOADS, Asked, picture_place, read, video_place  # isort: skip
import gradio as gr
from fastapi import FastAPI

from switchkd.chat import PICTURES
from switchkd.chat.guard import Guard
from switchkd.chat.overlay import COLOURS, most, overlay
from switchkd.chat.panel import AttentionMap, Member, Reply, Turn
from switchkd.chat.server import Server, listen
from switchkd.data.images import open_image

logger = logging.getLogger(__name__)
#: Where the page listens if it is for this computer alone.
LOCALHOST = "127.0.0.1"

_CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto}
.picture img {width: 100% !important; height: 100% !important; object-fit: contain}
.video button:is([aria-label^=Trim], [aria-label^=Reset]) {display: none}  /* cutting loads a program from elsewhere */
.answer textarea {font-size: 1.15rem; font-weight: 600}
.said textarea {font-size: 0.85rem; border: none !important; background: none !important; box-shadow: none !important}
.said:has(:placeholder-shown) {display: none}
.examples button {font-weight: 400}
.note {border: none !important; padding: 0 !important}
.note textarea {font-size: 0.85rem; padding: 0 !important}
.note textarea {border: none !important; background: none !important; box-shadow: none !important}
.wrong textarea {color: var(--error-text-color)}
.form:has(.wrong :placeholder-shown) {display: none}
.scale {font-size: 0.85rem; display: flex; align-items: center; gap: 8px; flex-wrap: wrap}
.scale span {flex: 0 0 160px; height: 10px; border-radius: 5px; background: linear-gradient(to right, COLOURS)}
""".replace("COLOURS", ", ".join(f"rgb{colour}" for colour in COLOURS))
_HEADING = (
    "<h1>Same pictures, same questions</h1><p>What each model answers, and which parts of the pictures its answer attends to. "
    "Each question follows up on those before it.</p>"
)
#: Questions to begin with.
EXAMPLES = (
    "What is in the picture?",
    "How many things are there?",
    "Read the text.",
    "Answer yes or no: is it outdoors?",
)
#: What stands under a model that has not finished, and under one that was stopped.
ANSWERING, STOPPED = "answering …", "Stopped: this question is no part of the conversation."
#: The longest answer that can be asked for.
MOST_TOKENS = 4096
_SCALE = "<div class='scale'>no attention <span></span> {most:.1f} times the average; one scale for all models</div>"

#: For the browser: what tells what is shown, pictures and a video, from others.
_SHOWN = f"JSON.stringify(inputs.slice(0, {PICTURES + 1}).map(file => file?.path))"


@dataclass(frozen=True)
class Conversation:
    """What was said about what is shown: the turns of each model, by its place."""

    shown: tuple[str | None, ...] = ()
    turns: tuple[tuple[Turn, ...], ...] = ()


class Page:
    """The page of a panel.

    `pictures` (files), `video` (a file) and `question` are what it begins with.

    Raises:
        SampleError: for a picture that models cannot be shown.
    """

    def __init__(
        self,
        members: list[Member],
        *,
        max_new_tokens: int,
        pictures: Sequence[Path] = (),
        video: Path | None = None,
        question: str | None = None,
    ) -> None:
        self.members = members
        self._server: Server | None = None
        for picture in pictures:
            open_image({"bytes": None, "path": os.path.realpath(picture)})
        first = [*map(str, pictures), *[None] * (PICTURES - len(pictures))]
        with gr.Blocks(title="switchkd chat", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            gr.HTML(_HEADING)
            self.conversation = gr.State(Conversation())
            with gr.Row():
                with gr.Column(scale=1, min_width=240):
                    self.pictures = [picture_place("Picture", 260, first[0])]
                    with gr.Accordion("More pictures", open=len(pictures) > 1), gr.Row():
                        self.pictures += [
                            picture_place(f"Picture {place}", 150, value) for place, value in enumerate(first[1:], 2)
                        ]
                    with gr.Accordion("A video", open=video is not None):
                        self.video = video_place(220, video)
                    self.question = gr.Textbox(
                        question, label="Question", placeholder=EXAMPLES[0], lines=1, max_lines=6, max_length=100_000
                    )
                    with gr.Row(elem_classes="examples"):
                        examples = [gr.Button(text, size="sm", min_width=130) for text in EXAMPLES]
                    with gr.Row():
                        self.button = gr.Button("Ask", variant="primary", min_width=80)
                        self.stop = gr.Button("Stop", min_width=80)
                        self.anew = gr.Button("Begin anew", min_width=110)
                    with gr.Accordion("How to answer", open=False):
                        self.tokens = gr.Slider(
                            1,
                            max(MOST_TOKENS, max_new_tokens),
                            max_new_tokens,
                            step=1,
                            label="Tokens of an answer at most",
                        )
                        self.temperature = gr.Slider(
                            0, HOTTEST, 0, step=0.1, label="Temperature (0: always the likeliest token)"
                        )
                    # its placeholder is how the style sheet knows that it is empty
                    self.wrong = gr.Textbox(
                        label="This did not work", placeholder=" ", interactive=False, elem_classes="wrong"
                    )
                with gr.Column(scale=3, min_width=300):
                    with gr.Row():
                        self.cards = [_Card(member.name) for member in members]
                    self.scale = gr.HTML()
            outputs = [self.wrong, self.scale, *(part for card in self.cards for part in card.parts)]
            inputs: list[Any] = [*self.pictures, self.video, self.question, self.tokens, self.temperature]
            empty = json.dumps([None if isinstance(part, gr.Image) else "" for part in outputs])
            as_it_is = json.dumps([{"__type__": "update"}] * len(outputs))
            running: list[dict[str, Any]] = []
            for event in (self.button.click, self.question.submit):
                asked = event(
                    self.ask,
                    [self.conversation, *inputs],
                    [self.conversation, *outputs],
                    concurrency_limit=1,  # times can only be compared if nothing else runs
                    concurrency_id="ask",
                    show_progress="hidden",
                    api_visibility="private",
                    js=f"(state, ...inputs) => {{window.asked = {_SHOWN}; return [state, ...inputs]}}",
                )
                running.append(asked)
                asked.then(None, inputs, outputs, js=f"(...inputs) => window.asked == {_SHOWN} ? {as_it_is} : {empty}")
            notes = [card.note for card in self.cards]
            stopped = f"(...notes) => notes.map(note => note == '{ANSWERING}' ? '{STOPPED}' : note)"
            self.stop.click(None, notes, notes, js=stopped, cancels=running)
            # Clears what was said, in the browser at once, as soon as what is shown changes or someone begins anew.
            for begin in (*(one.change for one in self.pictures), self.video.change, self.anew.click):
                begin(None, None, outputs, js=f"() => {{window.asked = null; return {empty}}}", cancels=running)
                begin(Conversation, None, self.conversation, api_visibility="private", show_progress="hidden")
            for example in examples:
                example.click(None, None, self.question, js=f"() => {json.dumps(example.value)}")

    def ask(self, before: Conversation, *asked: Any) -> Iterator[dict[Any, Any]]:
        """Let one model after the other answer, then draw where they looked: the new values of the page's parts, as they come.

        `asked` are the pictures, the video, the question, how many tokens an answer can have, and the temperature. Values alone are
        changed: where a part's label or visibility changes too, a browser that is slow to draw puts its old value back.
        """
        problems: list[str] = []
        yield self._begin()
        try:
            now = read(asked)
        except Exception as error:
            yield self._fail(problems, _message(error))
            return
        turns = before.turns if before.shown == now.names else tuple(() for _ in self.members)
        yield {card.said: _transcript(of_model, now.question) for card, of_model in zip(self.cards, turns, strict=True)}
        replies: dict[int, Reply] = {}
        for number, (member, card) in enumerate(zip(self.members, self.cards, strict=True)):
            yield {card.note: ANSWERING}
            try:
                for reply in _answers(member, now, turns[number]):
                    replies[number] = reply
                    yield {card.answer: reply.text}
            except Exception as error:
                replies.pop(number, None)
                yield {card.answer: "", card.note: ""} | self._fail(problems, f"{member.name}: {_message(error)}")
            else:
                yield {card.note: _time_text(replies[number])}
        # Of a model that failed, the conversation goes on without this question.
        after = [
            (*of_model, Turn(now.question, replies[number].text)) if number in replies else of_model
            for number, of_model in enumerate(turns)
        ]
        yield {self.conversation: Conversation(now.names, tuple(after))}
        maps: dict[int, list[AttentionMap]] = {}
        for number, reply in replies.items():
            try:
                maps[number] = _maps(self.members[number], now, turns[number], reply.text)
            except Exception as error:
                yield {
                    self.cards[number].note: f"{_time_text(replies[number])} No map of its attention: {_message(error)}"
                }
        if maps:
            end = max(map(most, maps.values()))
            changes: dict[Any, Any] = {self.scale: _SCALE.format(most=end)}
            for number, shown in maps.items():
                card = self.cards[number]
                changes |= {
                    card.overlay: overlay(shown, end),
                    card.note: f"{_time_text(replies[number])} {_share_text(shown)}",
                }
            yield changes

    def _begin(self) -> dict[Any, Any]:
        """Nothing of what was asked before."""
        return {self.wrong: "", self.scale: ""} | {
            part: None if part is card.overlay else "" for card in self.cards for part in card.parts
        }

    def _fail(self, problems: list[str], problem: str) -> dict[Any, Any]:
        """One more problem, below those before it."""
        problems.append(problem)
        return {self.wrong: "\n".join(problems)}

    def open(self, port: int | None = None, *, host: str | None = None, password: str | None = None) -> str:
        """Serve the page until `close`, and return its address. By default to this computer alone, on the first free port from 7860.

        Args:
            port: the only one that is tried.
            host: the address to listen on, for other computers.
            password: what they are asked for.

        Raises:
            OSError: if the port is taken, or all of the first hundred; or there is no such address.
            ValueError: other computers without a password.
        """
        if host is not None and not password:
            raise ValueError(f"other computers can reach the page on {host}: it needs a password")
        name = LOCALHOST if host is None else host
        listening = listen(name, range(7860, 7960) if port is None else range(port, port + 1))
        port = listening.getsockname()[1]
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            self.blocks,
            path="/",
            server_name=name,
            server_port=port,
            root_path="",
            allowed_paths=[],
            show_error=False,
            enable_monitoring=False,
            mcp_server=False,
            footer_links=[],
            run_history=False,
            pwa=False,
            ssr_mode=False,
            max_file_size="100mb",
            # the fonts of this computer: gradio's own themes fetch theirs
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
        )
        self._server = Server(Guard(app, UPLOADS, None if host is None else password), listening)
        anywhere = name in ("0.0.0.0", "::")
        shown = socket.gethostname() if anywhere else f"[{name}]" if ":" in name else name
        return f"http://{shown}:{port}/"

    def close(self) -> None:
        """Stop serving, and remove what was uploaded."""
        self.blocks.close(verbose=False)
        if self._server is not None:
            self._server.close()
        shutil.rmtree(UPLOADS, ignore_errors=True)


class _Card:
    """What the page shows of one model."""

    def __init__(self, name: str) -> None:
        with gr.Column(min_width=220):
            self.said = gr.Textbox(
                show_label=False,
                container=False,
                lines=1,
                max_lines=10,
                interactive=False,
                elem_classes="said",
                placeholder=" ",
            )
            self.answer = gr.Textbox(
                label=name, lines=1, max_lines=12, interactive=False, elem_classes="answer", buttons=["copy"]
            )
            self.overlay = gr.Image(
                format="png", height=260, interactive=False, show_label=False, buttons=["fullscreen"]
            )
            self.note = gr.Textbox(show_label=False, container=False, lines=2, interactive=False, elem_classes="note")
        self.parts = (self.said, self.answer, self.overlay, self.note)


def _answers(member: Member, now: Asked, turns: Sequence[Turn]) -> Iterator[Reply]:
    options: dict[str, Any] = {"max_new_tokens": now.tokens, "temperature": now.temperature}
    return member.ask(now.images, turns, now.question, video=now.video, **options)


def _maps(member: Member, now: Asked, turns: Sequence[Turn], answer: str) -> list[AttentionMap]:
    """Of pictures.

    Raises:
        ValueError: there is a video among what is shown; and as `attention_maps`.
    """
    if now.video is not None:
        raise ValueError("it is shown on pictures alone, and there is a video.")
    return member.attention_maps(now.images, turns, now.question, answer)


def _transcript(turns: Sequence[Turn], question: str) -> str:
    """What was said so far, and what is asked now."""
    return "\n".join([*(f"you: {turn.question}\n{turn.answer}" for turn in turns), f"you: {question}"])


def _time_text(reply: Reply) -> str:
    """How long an answer took."""
    return f"{reply.seconds:.2f} s{', cut before its end' if reply.truncated else ''}."


def _share_text(shown: Sequence[AttentionMap]) -> str:
    """Where a model looked, in numbers."""
    shares = " and ".join(f"{float(of_picture.attention.sum()):.0%}" for of_picture in shown)
    where = "the picture" if len(shown) == 1 else "these pictures"
    return f"{shares} of its attention is on {where}; the brightest spot gets {most(shown):.1f} times the average."


def _message(error: Exception) -> str:
    """What the page says; what is not the user's doing is logged as well, with where it happened."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "There is not enough memory for that: ask about fewer or smaller pictures, or for a shorter answer."
    if isinstance(error, ValueError | OSError | FloatingPointError) and str(error):
        return str(error)
    logger.error("while answering on the page", exc_info=error)
    return f"{type(error).__name__}: {error}"
