"""Chat templates at work, in a process of their own that ends at a limit of time and memory.

The sandbox of Jinja keeps a template from Python, but not from endless loops, nor from `'a' * 10**10`, which Jinja computes already
when it reads the template. Only the system can stop that, whatever thread asks, so a process is forked at the first template; it
renders for as long as this one lives. (On Linux; elsewhere only time is limited.)
"""

import gc
import os
import pickle
import resource
import signal
import threading
import warnings
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn, cast

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

#: Of computing, for one conversation. An ordinary template takes a ten-thousandth of it.
MOST_SECONDS = 2.0
#: By the clock, until it is taken for dead: it was forked while another thread held what it needs, or somebody has stopped it.
MOST_WAITING_SECONDS = 60.0
#: Beyond what the process has at its beginning.
MOST_BYTES = 2**29
#: A text of more characters is not handed over.
MOST_CHARACTERS = 2**26


class TemplateError(ValueError):
    """A template cannot be read, or not be rendered with what it was given."""


class LimitError(TemplateError):
    """A template took more time or memory than any conversation needs. It is not tried again."""


def check(template: str) -> None:
    """Raise TemplateError where a template is no Jinja, with the line; LimitError where reading it takes too much."""
    _ask(template, None)


def render(template: str, **arguments: Any) -> str:
    """What a template makes of one conversation; `arguments` are those of transformers' `render_jinja_template`.

    Raises:
        TemplateError: if it cannot.
        LimitError: if it takes too long, or too much memory.
    """
    return _ask(template, arguments)


class _Renderer:
    """The forked process, seen from the one that asks."""

    def __init__(self) -> None:
        asked, self._ask = Pipe(duplex=False)
        self._answer, answered = Pipe(duplex=False)
        with warnings.catch_warnings():
            # other threads are of no use to it: it renders, and takes no lock that they may hold
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if self._process == 0:
            _keep_only(asked, answered)
            _serve(asked, answered)
        asked.close()
        answered.close()

    def close(self) -> None:
        """Close this side of the pipes, at which the process ends."""
        self._ask.close()
        self._answer.close()

    def end(self) -> None:
        """Close this side of the pipes, and wait for the end of the process, whatever it is at."""
        self.close()
        with suppress(ChildProcessError):  # somebody else has waited for it
            if os.waitpid(self._process, os.WNOHANG)[0] == 0:
                os.kill(self._process, signal.SIGKILL)
                os.waitpid(self._process, 0)

    def send(self, template: str, arguments: dict[str, Any] | None) -> None:
        """Raises OSError if the process has ended."""
        self._ask.send_bytes(pickle.dumps((template, arguments)))

    def receive(self) -> tuple[type[TemplateError] | None, str]:
        """What a template has made, or an error and its words. Raises OSError if the process does not answer."""
        if not self._answer.poll(MOST_WAITING_SECONDS):
            raise TimeoutError(f"the process that renders it did not answer within {MOST_WAITING_SECONDS:g} seconds")
        try:
            return cast(tuple[type[TemplateError] | None, str], pickle.loads(self._answer.recv_bytes()))
        except EOFError:
            self.close()
            _, status = os.waitpid(self._process, 0)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGVTALRM:
                return LimitError, f"takes more than {MOST_SECONDS:g} seconds of computing"
            return TemplateError, f"ended the process that renders it (wait status {status})"


_renderer: _Renderer | None = None
_lock = threading.Lock()
#: Templates that took too much, and what.
_refused: dict[str, str] = {}


def _forget() -> None:
    """End the process; the next question starts another."""
    global _renderer
    renderer, _renderer = _renderer, None
    if renderer is not None:
        renderer.end()


def _start_anew() -> None:
    """In a process that is forked from this one: it gets a renderer of its own, and must not keep this one's alive."""
    global _renderer, _lock
    if _renderer is not None:
        _renderer.close()
    _renderer, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_start_anew)


def _ask(template: str, arguments: dict[str, Any] | None) -> str:
    global _renderer
    with _lock:
        if template in _refused:
            raise LimitError(_refused[template])
        try:
            try:
                error, text = _exchange(template, arguments)
            except OSError:  # it has ended since the last conversation, or does not answer
                _forget()
                error, text = _exchange(template, arguments)
        except OSError as silent:
            _forget()
            raise TemplateError(str(silent)) from silent
        except BaseException:  # what it answers later is no answer to the next question
            _forget()
            raise
        if error is LimitError:
            _refused[template] = text
    if error is not None:
        raise error(text)
    return text


def _exchange(template: str, arguments: dict[str, Any] | None) -> tuple[type[TemplateError] | None, str]:
    global _renderer
    if _renderer is None:
        _renderer = _Renderer()
    _renderer.send(template, arguments)
    return _renderer.receive()


def _serve(asked: Connection, answered: Connection) -> NoReturn:
    """Render what is asked, until nobody asks any more. The parent decides at which signals a run ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    gc.freeze()  # or the memory of the parent would be copied when garbage is looked for
    _limit_memory()
    try:
        while True:
            template, arguments = pickle.loads(asked.recv_bytes())
            signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
            reply = _reply(template, arguments)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            answered.send_bytes(pickle.dumps(reply))
    finally:
        os._exit(0)


def _keep_only(*connections: Connection) -> None:
    """Let go of all other files of the parent: locks that it holds, and the ends of its pipes."""
    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silent, standard)
    kept = sorted(connection.fileno() for connection in connections)
    for low, high in pairwise([2, *kept, os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low + 1, high)


def _limit_memory() -> None:
    size = Path("/proc/self/statm")
    if size.exists():
        pages = int(size.read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _reply(template: str, arguments: dict[str, Any] | None) -> tuple[type[TemplateError] | None, str]:
    try:
        if arguments is None:
            _compile_jinja_template(template)
            return None, ""
        rendered: Any = render_jinja_template(chat_template=template, **arguments)
        text: str = rendered[0][0]
    except MemoryError:
        return LimitError, f"takes more than {MOST_BYTES / 2**20:.0f} MiB of memory"
    except RecursionError:
        return LimitError, "calls itself without an end"
    except TemplateSyntaxError as error:
        return TemplateError, f"line {error.lineno}: {error}"
    except Exception as error:
        return TemplateError, str(error) or type(error).__name__
    if len(text) > MOST_CHARACTERS:
        return LimitError, f"writes {len(text):,} characters for one conversation, more than {MOST_CHARACTERS:,}"
    return None, text
