"""A small server that speaks the part of the OpenAI API that is asked here, says what it is told to, and keeps what it received."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

MODEL = "owner/teacher"


class Sent(NamedTuple):
    """What is sent back: a status, a body and headers; a body of None cuts the connection."""

    status: int
    body: str | None
    headers: tuple[tuple[str, str], ...] = ()


def said(text: str | None, ended: str = "stop") -> Sent:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
    return Sent(200, json.dumps({"object": "chat.completion", "choices": [choice]}))


@dataclass
class Heard:
    """What the server has received, and the most requests that it had at one time."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    together: int = 0
    most_together: int = 0


@contextmanager
def answering(say: Callable[[dict[str, Any]], Sent], models: Sent | None = None) -> Iterator[Heard]:
    """A server on a free port, each request in a thread of its own; `say` gets the body of each that asks for an answer."""
    heard, lock = Heard(), threading.Lock()
    listed = models or Sent(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            heard.keys.append(self.headers.get("Authorization"))
            self._send(listed if self.path == "/v1/models" else Sent(404, '{"detail": "Not Found"}'))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            with lock:
                heard.bodies.append(body)
                heard.keys.append(self.headers.get("Authorization"))
                heard.together += 1
                heard.most_together = max(heard.most_together, heard.together)
            try:
                sent = say(body)
            finally:
                with lock:
                    heard.together -= 1
            self._send(sent)

        def _send(self, sent: Sent) -> None:
            if sent.body is None:
                self.close_connection = True
                return
            content = sent.body.encode()
            self.send_response(sent.status)
            for name, value in (("Content-Length", str(len(content))), *sent.headers):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: no test reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    heard.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
