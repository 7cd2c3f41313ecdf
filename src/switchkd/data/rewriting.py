"""Rows with other answers: what is asked before one, and the row with a text in its place."""

from collections import Counter
from typing import Any

from switchkd.data.row_videos import videos_of

#: Of a row: messages, images, videos and what else a reader reads.
Row = dict[str, Any]


def before(row: Row, turn: int) -> Row:
    """The row up to what message number `turn` answers, with the pictures and videos that are shown until then."""
    messages = row["messages"][:turn]
    shown = Counter(part["type"] for message in messages for part in message["content"])
    media = {"images": row["images"][: shown["image"]], "videos": videos_of(row)[: shown["video"]]}
    return {**row, "messages": messages, **media}


def said(text: str) -> Row:
    """An answer, as a message."""
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "reasoning": None,
        "learned": True,
    }
