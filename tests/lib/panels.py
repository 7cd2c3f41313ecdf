"""Panels of pretended models for the tests of the page, and what gradio needs to leave nothing behind."""

import asyncio
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image

from switchkd.chat.panel import AttentionMap, Reply


@dataclass
class Pretender:
    """A member of a panel that says what it is told to."""

    name: str
    text: str = "yes"
    truncated: bool = False
    attention: list = field(default_factory=lambda: [[0.1, 0.3]])
    asked: list = field(default_factory=list)

    def ask(self, images, turns, question, *, video, max_new_tokens, temperature):
        shown = images if video is None else [*images, video]
        self.asked.append((shown, turns, question, max_new_tokens, temperature))
        for end in (len(self.text) // 2, len(self.text)):
            yield Reply(self.text[:end], self.truncated, 0.123)

    def attention_maps(self, images, turns, question, answer):
        self.asked.append((images, turns, question, answer))
        return [AttentionMap(Image.new("RGB", (32, 32)), torch.tensor(self.attention)) for _ in images]


class Broken(Pretender):
    """One that cannot answer."""

    def ask(self, images, turns, question, **options):
        yield Reply("half of an ans", True, 0.123)
        raise RuntimeError(self.text)


class Blind(Pretender):
    """One that answers, and of which nobody knows where it looks."""

    def attention_maps(self, images, turns, question, answer):
        raise ValueError(self.text)


def bomb(file: Path) -> Path:
    """Write a PNG of a few bytes that declares 64 megapixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8_000, 8_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return file


@pytest.fixture
def loops_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """gradio makes event loops for its locks that it never closes; Python would complain in whichever test comes next."""
    made, new = [], asyncio.new_event_loop

    def note():
        made.append(new())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", note)
    yield
    for loop in made:
        loop.close()
    asyncio.set_event_loop(None)
