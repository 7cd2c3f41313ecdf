"""A page in the browser: the models of a panel answer the same question about the same picture, side by side.

Needs the extra `web`. What models and users write is shown in text boxes and labels, which cannot be anything but text.
"""

import atexit
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from switchkd.chat.overlay import COLOURS, overlay, relative
from switchkd.chat.panel import AttentionMap, Member, Reply
from switchkd.data.errors import SampleError
from switchkd.data.images import open_image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: it would report home
# gradio names uploads by their content: the page of another process that shows the same picture would delete ours when it ends
UPLOADS = Path(tempfile.mkdtemp(prefix="switchkd-chat-"))
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
try:
    import gradio as gr
    from fastapi import FastAPI

    from switchkd.chat.guard import Guard, uploaded
    from switchkd.chat.server import Server, listen
except ImportError as error:
    raise ImportError(f"the page needs gradio ({error}): pip install 'switchkd[web]'") from error

logger = logging.getLogger(__name__)
#: Where the page listens if it is for this computer alone.
LOCALHOST = "127.0.0.1"

_CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto}
.picture img {width: 100% !important; height: 100% !important; object-fit: contain}
.answer textarea {font-size: 1.15rem; font-weight: 600}
.note {border: none !important; padding: 0 !important}
.note textarea {font-size: 0.85rem; padding: 0 !important}
.note textarea {border: none !important; background: none !important; box-shadow: none !important}
.wrong textarea {color: var(--error-text-color)}
.form:has(.wrong :placeholder-shown) {display: none}
.scale {font-size: 0.85rem; display: flex; align-items: center; gap: 8px; flex-wrap: wrap}
.scale span {flex: 0 0 160px; height: 10px; border-radius: 5px; background: linear-gradient(to right, COLOURS)}
""".replace("COLOURS", ", ".join(f"rgb{colour}" for colour in COLOURS))
_HEADING = "<h1>Same picture, same question</h1><p>What each model answers, and which parts of the picture its answer attends to.</p>"
_SCALE = "<div class='scale'>no attention <span></span> {most:.1f} times the average; one scale for all models</div>"

#: For the browser: what tells a picture and a question from others.
_ASKED = "JSON.stringify([inputs[0]?.path, inputs[1]])"


class Page:
    """The page of a panel.

    `picture` (a file) and `question` are what it begins with.

    Raises:
        SampleError: for a picture that models cannot be shown.
    """

    def __init__(
        self, members: list[Member], *, max_new_tokens: int, picture: Path | None = None, question: str | None = None
    ) -> None:
        self.members = members
        self._server: Server | None = None
        self.max_new_tokens = max_new_tokens
        if picture is not None:
            open_image({"bytes": None, "path": os.path.realpath(picture)})
        with gr.Blocks(title="switchkd chat", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            gr.HTML(_HEADING)
            with gr.Row():
                with gr.Column(scale=1, min_width=240):
                    self.picture = gr.Image(
                        None if picture is None else str(picture),
                        label="Picture",
                        show_label=False,  # it would lie over a corner of the picture
                        sources=["upload", "clipboard"],
                        buttons=[],
                        height=260,
                        elem_classes="picture",
                    )
                    # gradio would copy or fetch what a request names, and decode it; `open_image` looks at its size first
                    cast(Any, self.picture).async_move_resource_to_block_cache = _untouched
                    cast(Any, self.picture).preprocess = _upload
                    self.question = gr.Textbox(question, label="Question", placeholder="What is in the picture?")
                    self.button = gr.Button("Ask", variant="primary")
                    # its placeholder is how the style sheet knows that it is empty
                    self.wrong = gr.Textbox(
                        label="This did not work", placeholder=" ", interactive=False, elem_classes="wrong"
                    )
                with gr.Column(scale=3, min_width=300):
                    with gr.Row():
                        self.cards = [_Card(member.name) for member in members]
                    self.scale = gr.HTML()
            outputs = [self.wrong, self.scale, *(part for card in self.cards for part in card.parts)]
            inputs: list[Any] = [self.picture, self.question]
            empty = json.dumps([None if isinstance(part, gr.Image) else "" for part in outputs])
            as_it_is = json.dumps([{"__type__": "update"}] * len(outputs))
            for event in (self.button.click, self.question.submit):
                event(
                    self.ask,
                    inputs,
                    outputs,
                    concurrency_limit=1,  # times can only be compared if nothing else runs
                    concurrency_id="ask",
                    show_progress="hidden",
                    api_visibility="private",
                    js=f"(...inputs) => {{window.asked = {_ASKED}; return inputs}}",
                ).then(None, inputs, outputs, js=f"(...inputs) => window.asked == {_ASKED} ? {as_it_is} : {empty}")
            # Clears the answers in the browser as soon as the picture or the question changes.
            for event in (self.picture.change, self.question.input):
                event(None, None, outputs, js=f"() => {empty}")

    def ask(self, picture: str | None, question: str) -> Iterator[dict[Any, Any]]:
        """Let one model after the other answer, then draw where they looked: the new values of the page's parts, as they come.

        Values alone: where a part's label or visibility changes too, a browser that is slow to draw puts its old value back.
        """
        problems: list[str] = []
        yield self._begin()
        try:
            content = _read(picture, question)
        except Exception as error:
            yield self._fail(problems, _message(error))
            return
        replies: dict[int, Reply] = {}
        for number, (member, card) in enumerate(zip(self.members, self.cards, strict=True)):
            yield {card.note: "answering …"}
            try:
                replies[number] = reply = member.ask(content, question, max_new_tokens=self.max_new_tokens)
            except Exception as error:
                yield {card.note: ""} | self._fail(problems, f"{member.name}: {_message(error)}")
            else:
                yield {card.answer: reply.text, card.note: _time_text(reply)}
        maps: dict[int, AttentionMap] = {}
        for number, reply in replies.items():
            try:
                maps[number] = self.members[number].attention_map(content, question, reply.text)
            except Exception as error:
                yield {
                    self.cards[number].note: f"{_time_text(replies[number])} No map of its attention: {_message(error)}"
                }
        if maps:
            most = max(float(relative(shown).max()) for shown in maps.values())
            changes: dict[Any, Any] = {self.scale: _SCALE.format(most=most)}
            for number, shown in maps.items():
                card = self.cards[number]
                changes |= {
                    card.overlay: overlay(shown, most),
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
            self.answer = gr.Textbox(label=name, lines=1, max_lines=12, interactive=False, elem_classes="answer")
            self.overlay = gr.Image(
                format="png", height=260, interactive=False, show_label=False, buttons=["fullscreen"]
            )
            self.note = gr.Textbox(show_label=False, container=False, lines=2, interactive=False, elem_classes="note")
        self.parts = (self.answer, self.overlay, self.note)


def _time_text(reply: Reply) -> str:
    """How long an answer took."""
    return f"{reply.seconds:.2f} s{', cut before its end' if reply.truncated else ''}."


def _share_text(shown: AttentionMap) -> str:
    """Where a model looked, in numbers."""
    return (
        f"{float(shown.attention.sum()):.0%} of its attention is on the picture; "
        f"the brightest spot gets {float(relative(shown).max()):.1f} times the average."
    )


def _upload(sent: Any) -> str | None:
    """Where the picture lies that a request names: an upload of this page, or nothing that is opened.

    Raises:
        Error: for everything else in the same words, so that they do not tell what there is on this computer.
    """
    if sent is None or sent.path is None:
        return None
    file = uploaded(sent.path, UPLOADS)
    if file is None:
        raise gr.Error("This picture was not uploaded here, or too long ago: choose it again.", print_exception=False)
    return str(file)


async def _untouched(path: str) -> str:
    """What a request names is neither copied nor fetched by gradio."""
    return path


def _read(picture: str | None, question: str) -> bytes:
    """The file of the picture.

    Raises:
        SampleError: there is none, or it is nothing that a model can be shown; or there is no question.
    """
    if picture is None:
        raise SampleError("There is no picture yet: choose one, drop it or paste it.")
    if not question.strip():
        raise SampleError("There is no question yet.")
    content = Path(picture).read_bytes()
    open_image({"bytes": content, "path": Path(picture).name})
    return content


def _message(error: Exception) -> str:
    """What the page says; what is not the user's doing is logged as well, with where it happened."""
    if isinstance(error, ValueError | OSError | FloatingPointError) and str(error):
        return str(error)
    logger.error("while answering on the page", exc_info=error)
    return f"{type(error).__name__}: {error}"
