"""What stands before the page: of all that gradio would answer, only what the page itself asks for gets through."""

import os
import re
import secrets
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

#: Names by which a browser on this computer calls it. Another name that leads here may be a stranger's (DNS rebinding).
_LOCAL = ("127.0.0.1", "localhost", "::1")
#: What the page in the browser asks for. Everything else that gradio has, and what later versions may add, is not there.
_OPEN = {
    "GET": r"/|/config|/theme\.css|/favicon\.ico|/(assets|static|svelte)/.+"
    r"|/gradio_api/(startup-events|queue/data|upload_progress|heartbeat/[^/]+)",
    "POST": r"/gradio_api/(queue/join|upload|cancel|reset)",
}
_FILE = "/gradio_api/file="


def uploaded(path: str, uploads: Path) -> Path | None:
    """The regular file that `path` leads to, if it lies in the folder `uploads`, all symbolic links followed."""
    try:
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(uploads))
        return real if os.path.isabs(path) and folder in real.parents and real.is_file() else None
    except (OSError, ValueError):  # too long, a null byte
        return None


class Guard:
    """An ASGI application before another one.

    Args:
        app: what answers the requests that get through.
        uploads: the only folder that files are served from.
        password: asked for with every request, under any user name (HTTP basic); None: only browsers that call this computer
            by a local name are answered.
    """

    def __init__(self, app: Any, uploads: Path, password: str | None) -> None:
        self.app = app
        self.uploads = uploads
        self.password = password

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Any) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or (self.password is None and _name(hosts[0]) not in _LOCAL):
            return PlainTextResponse("This page answers on its own computer only.", 403)
        navigates = scope["path"] == "/" and scope["method"] == "GET"
        elsewhere = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and not navigates
        if elsewhere or any(urlsplit(origin).netloc != hosts[0] for origin in origins):
            return PlainTextResponse("Other pages cannot use this one.", 403)
        if self.password is not None and not _knows(headers.get("authorization", ""), self.password):
            return PlainTextResponse(
                "This page asks for its password.",
                401,
                {"WWW-Authenticate": 'Basic realm="switchkd chat", charset="UTF-8"'},
            )
        method, path = "GET" if scope["method"] == "HEAD" else scope["method"], scope["path"]
        if path.startswith(_FILE) and method == "GET":
            is_open = uploaded(path.removeprefix(_FILE), self.uploads) is not None
        else:
            is_open = re.fullmatch(_OPEN.get(method, "(?!)"), path) is not None
        return None if is_open else PlainTextResponse("There is nothing here.", 404)


def _name(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _knows(authorization: str, password: str) -> bool:
    scheme, _, encoded = authorization.partition(" ")
    try:
        given = b64decode(encoded, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return scheme.lower() == "basic" and secrets.compare_digest(given, password.encode())
