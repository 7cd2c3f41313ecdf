"""The guard of the network guards."""

import socket
import urllib.request
from contextlib import suppress

import offline
import pytest


def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("192.0.2.1", 9))


ATTEMPTS = {
    "address": lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
    "IPv6": lambda: socket.create_connection(("2001:db8::1", 80), timeout=1),
    "name": lambda: socket.getaddrinfo("example.org", 80),
    "URL": lambda: urllib.request.urlopen("http://example.org/", timeout=1),
    "not connected": udp,
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_what_leaves_the_machine_is_refused_and_noted(attempt):
    with suppress(OSError):
        attempt()
    assert len(offline.attempts) == 1
    offline.attempts.clear()  # or the fixture of all tests fails this one


def test_what_stays_is_let_through():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        assert offline.attempts == []


def test_a_test_that_tries_fails():
    with suppress(OSError):
        socket.getaddrinfo("example.org", 80)
    with pytest.raises(AssertionError, match=r"this test tried to reach the network: .*example.org"):
        offline.fail_if_tried()
