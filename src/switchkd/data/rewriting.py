"""Rows with other answers: what is asked before one, and the row with a text in its place."""

from typing import Any

#: Of a row: messages, images and what else a reader reads.
Row = dict[str, Any]


def before(row: Row, turn: int) -> Row:
    """The row up to what message number `turn` answers, with the pictures that are shown until then."""
    messages = row["messages"][:turn]
    shown = sum(part["type"] == "image" for message in messages for part in message["content"])
    return {**row, "messages": messages, "images": row["images"][:shown]}


def said(text: str) -> Row:
    """An answer, as a message."""
    return {
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "reasoning": None,
        "learned": True,
    }
