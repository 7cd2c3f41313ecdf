"""An ASGI application served by a thread of this process, until it is closed."""

import socket
import threading
from typing import Any

import uvicorn


def listen(host: str, ports: range) -> socket.socket:
    """A socket on the first of these ports that is free.

    Raises:
        OSError: none is, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise OSError(f"--host {host}: this computer has no such address: {error.strerror}") from error
    reason = None
    for port in ports:
        try:
            return socket.create_server((str(address[0]), port), family=family)
        except OSError as error:
            reason = error.strerror
    if len(ports) == 1:
        raise OSError(
            f"port {ports[0]} is taken ({reason}): choose another with --port, or leave it out for one that is free"
        )
    raise OSError(f"no port from {ports[0]} to {ports[-1]} is free ({reason}): choose one with --port")


class Server:
    """Serves from its making until `close`."""

    def __init__(self, app: Any, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app, log_level="warning", proxy_headers=False, server_header=False, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the server of the page did not start")
            self._thread.join(0.01)

    def close(self) -> None:
        """Answer no more; connections that are open get a second."""
        self._server.should_exit = True
        self._thread.join(10)
