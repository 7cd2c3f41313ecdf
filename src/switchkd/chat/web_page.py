"""A page in the browser: the models of a panel answer the same question about the same picture, side by side.

Needs the extra `web`. What models and users write is shown in text boxes and labels, which cannot be anything but text.
"""

import atexit
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
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="switchkd-chat-")
atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
try:
    import gradio as gr
except ImportError as error:
    raise ImportError(f"the page needs gradio ({error}): pip install 'switchkd[web]'") from error

logger = logging.getLogger(__name__)

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
                    # gradio would decode what is uploaded; `open_image` looks at its size first
                    cast(Any, self.picture).preprocess = lambda upload: upload and upload.path
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
            for event in (self.button.click, self.question.submit):
                event(
                    self.ask,
                    [self.picture, self.question],
                    outputs,
                    concurrency_limit=1,  # times can only be compared if nothing else runs
                    concurrency_id="ask",
                    show_progress="hidden",
                    api_visibility="private",
                )

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

    def open(self, port: int | None = None) -> str:
        """Serve the page to this computer alone, until `close`, and return its address. By default on the first free port from 7860.

        Raises:
            OSError: if the port is taken, or all of the first hundred.
        """
        if port is None:  # gradio's own search leaves a socket open for each port that is taken
            port = next(filter(_free, range(7860, 7960)), None)
            if port is None:
                raise OSError("no port from 7860 to 7959 is free: choose one with --port")
        elif not _free(port):
            raise OSError(f"port {port} is taken: choose another with --port, or leave it out for one that is free")
        _, address, _ = self.blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            pwa=False,
            ssr_mode=False,
            max_file_size="100mb",
            # the fonts of this computer: gradio's own themes fetch theirs
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
        )
        return str(address)

    def close(self) -> None:
        """Stop serving."""
        self.blocks.close(verbose=False)


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


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was used a moment ago is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


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
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    logger.error("while answering on the page", exc_info=error)
    return f"{type(error).__name__}: {error}"
