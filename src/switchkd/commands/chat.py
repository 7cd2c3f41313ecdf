"""`switchkd chat`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from switchkd.commands.verb import Verb, fail, say


@dataclass(frozen=True)
class Chat(Verb):
    """Ask a model about an image, in the terminal (/image FILE shows it another one, /quit ends), or several on a page in the browser.

    Example: switchkd chat runs/demo/switch-kd/student --image runs/demo/data/images/test/00000.png

    Example: switchkd chat MODEL --image photo.jpg --question "What is this?"

    Example: switchkd chat --web teacher=runs/demo/teacher SFT=runs/demo/sft/student Switch-KD=runs/demo/switch-kd/student
    """

    #: A checkpoint directory, or a name on the Hugging Face hub; several with --web, as NAME=MODEL if they are to be called something.
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME=]MODEL ...")]
    #: The image to talk about; several, shown to the model together, as --image A --image B (not with --web).
    image: UseAppendAction[tuple[Path, ...]] = ()
    #: Ask only this, print the answer and end; with --web: what the page begins with.
    question: str | None = None
    #: Longer answers are cut.
    max_new_tokens: int = 256
    #: Show a page on this computer's own address: every model's answer, its time, and where it looks.
    web: bool = False
    #: Of the page; by default the first free one from 7860.
    port: int | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Talk."""
        if not self.models:
            return fail("chat with which model? Name a checkpoint directory, or a model on the Hugging Face hub", 2)
        if self.web:
            if len(self.image) > 1:
                return fail(f"the page begins with one image, not with {len(self.image)}: give one --image", 2)
            return self._serve()
        if len(self.models) > 1:
            return fail(
                f"{len(self.models)} models cannot talk in the terminal: ask one, or all on a page with --web", 2
            )
        if self.port is not None:
            return fail("--port is that of the page: add --web", 2)
        from switchkd.chat.conversation import Conversation, talk
        from switchkd.evaluate.generate import load

        conversation = Conversation(*load(self.models[0]), max_new_tokens=self.max_new_tokens)
        conversation.show(self.image)
        if self.question is None:
            talk(conversation)
        else:
            print(conversation.ask(self.question))
        return 0

    def _serve(self) -> int:
        """Show the page until Ctrl-C."""
        from switchkd.chat.panel import load_models
        from switchkd.chat.web_page import Page

        picture = self.image[0] if self.image else None
        page = Page(
            load_models(self.models), max_new_tokens=self.max_new_tokens, picture=picture, question=self.question
        )
        say(f"{page.open(self.port)} (Ctrl-C ends)")
        try:
            Event().wait()
        except KeyboardInterrupt:
            return 0
        finally:
            page.close()
        return 0
