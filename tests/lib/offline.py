"""No socket of the tests leaves this machine: one that tries is refused, and the test fails even if its code swallows the error.

An audit hook of Python sees every connection and every look-up of a name that goes through Python's `socket`, in the tests' own process and
in each that it forks. Programs that are not Python, and libraries that open sockets in C, are not seen.
"""

import ipaddress
import sys
from typing import Any

#: What was tried since a test asked.
attempts: list[str] = []


class NetworkError(OSError):
    """A test tried to reach the network."""


def is_local(host: Any) -> bool:
    """Whether an address or name is that of this machine."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) and address else None  # others are local sockets
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not is_local(host):
        attempts.append(f"{event} {host!r}")
        raise NetworkError(f"{host!r} is not this machine, and the tests run without a network")


def guard() -> None:
    """From now on, for as long as this process lives."""
    sys.addaudithook(_audit)


def fail_if_tried() -> None:
    """Raise AssertionError if something was tried since the last call."""
    tried = attempts.copy()
    attempts.clear()
    assert not tried, f"this test tried to reach the network: {', '.join(tried)}"


def probe() -> None:
    """Try to reach an address that nobody has."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("192.0.2.1", 9))
