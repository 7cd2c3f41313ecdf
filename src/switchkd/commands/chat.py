"""`switchkd chat`."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from getpass import getpass
from pathlib import Path
from threading import Event
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from switchkd.chat import PICTURES
from switchkd.chat.model_names import by_name
from switchkd.commands.presence import require_model, require_paths
from switchkd.commands.verb import Verb, fail, model_libraries, warn

#: The environment variable with the page's password, and how long it must be: nothing limits how often it is guessed.
PASSWORD, PASSWORD_LENGTH = "SWITCHKD_CHAT_PASSWORD", 12


@dataclass(frozen=True)
class Chat(Verb):
    """Ask a model about an image or a video, in the terminal (/image and /video FILE show others, /quit ends), or several on a page.

    Example: switchkd chat runs/demo/switch-kd/student --image runs/demo/data/images/test/00000.png

    Example: switchkd chat MODEL --image photo.jpg --question "What is this?"

    Example: switchkd chat --web teacher=runs/demo/teacher SFT=runs/demo/sft/student Switch-KD=runs/demo/switch-kd/student
    """

    #: A checkpoint directory, a run, or a name on the hub; several with --web, as NAME=MODEL if they are to be called something.
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME=]MODEL ...")]
    #: The image to talk about; several, shown to the model together, as --image A --image B.
    image: UseAppendAction[tuple[Path, ...]] = ()
    #: The video to talk about, a file or a folder of its frames; several as --video A --video B (with --web one file).
    video: UseAppendAction[tuple[Path, ...]] = ()
    #: Ask only this, print the answer and end; with --web: what the page begins with.
    question: str | None = None
    #: Longer answers are cut.
    max_new_tokens: int = 256
    #: Show a page on this computer's own address: every model's answer, its time, and where it looks.
    web: bool = False
    #: Of the page; by default the first free one from 7860.
    port: int | None = None
    #: Of the page: listen on this address, for other computers, and ask them for a password (typed, or in $SWITCHKD_CHAT_PASSWORD).
    host: str | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Talk."""
        if not self.models:
            return fail("chat with which model? Name a checkpoint directory, or a model on the Hugging Face hub", 2)
        if self.max_new_tokens < 1:
            return fail(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}", 2)
        if self.web:
            for what, given, most in (("image", self.image, PICTURES), ("video", self.video, 1)):
                if len(given) > most:
                    return fail(
                        f"the page shows up to {most} {what}{'s' * (most > 1)}, and got {len(given)} --{what}", 2
                    )
            if self.video and self.video[0].is_dir():
                return fail(
                    f"{self.video[0]} is a folder, and the page shows a video's file: ask in the terminal, without --web",
                    2,
                )
            return self._serve()
        if len(self.models) > 1:
            return fail(
                f"{len(self.models)} models cannot talk in the terminal: ask one, or all on a page with --web", 2
            )
        if self.port is not None:
            return fail("--port is that of the page: add --web", 2)
        if self.host is not None:
            return fail("--host is that of the page: add --web", 2)
        require_paths([*self.image, *self.video])
        (model,) = by_name(self.models).values()
        require_model(model)
        with model_libraries():
            from switchkd.chat.conversation import Conversation, talk
            from switchkd.evaluate.generate import load

        conversation = Conversation(*load(model), max_new_tokens=self.max_new_tokens)
        conversation.show(self.image, self.video)
        if self.question is None:
            talk(conversation)
        else:
            print(conversation.ask(self.question))
        return 0

    def _serve(self) -> int:
        """Show the page until Ctrl-C, SIGTERM or SIGHUP (`switchkd.interrupts`)."""
        require_paths([*self.image, *self.video])
        for path in by_name(self.models).values():
            require_model(path)
        password = None if self.host is None else _password()
        with model_libraries():
            # imported here, because it makes the folder of the uploads
            from switchkd.chat.panel import load_models
            from switchkd.chat.web_page import Page

        page = Page(
            load_models(self.models),
            max_new_tokens=self.max_new_tokens,
            pictures=self.image,
            video=self.video[0] if self.video else None,
            question=self.question,
        )
        try:
            address = page.open(self.port, host=self.host, password=password)
            warn(f"{address} (Ctrl-C ends{'' if self.host is None else '; any user name, and the password'})")
            Event().wait()
        except KeyboardInterrupt:
            return 0
        finally:
            page.close()
        return 0


def _password() -> str:
    """From the environment, else asked for in the terminal; never an argument, which every user of the computer could read.

    Raises:
        ValueError: there is none, or it is short.
    """
    password = os.environ.get(PASSWORD)
    if password is None:
        if not sys.stdin.isatty():
            raise ValueError(
                f"--host shows the page to other computers: give it a password in the environment, {PASSWORD}"
            )
        password = getpass(f"Password that other computers are asked for (at least {PASSWORD_LENGTH} characters): ")
    if len(password) < PASSWORD_LENGTH:
        raise ValueError(
            f"the password of the page has {len(password)} characters; at least {PASSWORD_LENGTH} are needed"
        )
    return password
