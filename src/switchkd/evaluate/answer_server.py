"""A server that answers over the OpenAI API (vLLM, SGLang, llama.cpp and others): what it is sent, and what it sends back."""

import asyncio
import base64
import json
import os
from contextlib import AsyncExitStack
from io import BytesIO
from typing import Any, Self

import httpx2
from PIL import Image

from switchkd.data.errors import SampleError
from switchkd.data.images import IMAGE_FORMATS, open_images, open_picture_file
from switchkd.data.rewriting import Row
from switchkd.evaluate.generate import Answer

#: Holds what the server asks for as a key, if it asks for one.
KEY_VARIABLE = "SWITCHKD_SERVER_KEY"
#: Seconds before what failed is asked again: a server that is busy, or starts anew, has two minutes.
WAITS_S = (1, 2, 4, 8, 16, 32, 60)
#: An answer may take so many seconds, and a connection.
_PATIENCE = httpx2.Timeout(600, connect=10)
#: Statuses that may be others a little later; so are all from 500 on.
_PASSING = (408, 429)
#: Statuses that speak of what was asked, and not of who asks or where.
_OF_THE_ROW = (400, 413, 422)
_WORDS = 300
_EXAMPLE = "http://localhost:8000/v1"


class ServerError(OSError):
    """A server cannot be asked. The message names the address, and the row where one was asked."""


class AnswerServer:
    """Asks a model of a server for answers. Used with `async with`.

    Args:
        url: where its API begins, which mostly ends in /v1.
        model: the model's name there.
        max_new_tokens: an answer is cut after so many.
        temperature: 0: the likeliest tokens.
        seed: of what is drawn, where the server takes one.
        at_once: so many requests are under way at a time, at most.

    Raises:
        ValueError: an address that holds more than one, or a key that cannot be sent.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        at_once: int = 32,
    ) -> None:
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{url!a} is no address of a server ({error}): write it as {_EXAMPLE}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 0) > 65535:
            raise ValueError(f"{url!a} is no address of a server: write it as {_EXAMPLE}")
        if parsed.userinfo or parsed.query or parsed.fragment:
            raise ValueError(
                "the address of a server holds no password, no ? and no #, because it is shown: put a key into the environment, as "
                f"{KEY_VARIABLE}"
            )
        self.url = url.rstrip("/")
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.settings: dict[str, object] = {"max_tokens": max_new_tokens, "temperature": temperature}
        if seed is not None:
            self.settings["seed"] = seed
        self.at_once = at_once
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds something that is no key: a character that cannot be sent")
        self._answers = self._refused = 0

    async def __aenter__(self) -> Self:
        """Connect, and look whether the model is there.

        Raises:
            ServerError: no server answers, it does not speak the API, or has no such model.
        """
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(
                httpx2.AsyncClient(
                    headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                    timeout=_PATIENCE,
                    limits=httpx2.Limits(max_connections=self.at_once),
                )
            )
            await self._find_model()
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._opened.aclose()

    async def _find_model(self) -> None:
        where = f"{self.url}/models"
        try:
            response = await self._client.get(where)
        except httpx2.RequestError as error:
            raise ServerError(
                f"{where}: no server answers there ({_reason(error)}). Start one, as by `vllm serve {self.model}`, or correct --server"
            ) from error
        if response.status_code != 200:
            hint = ". An address of this API mostly ends in /v1" if response.status_code == 404 else ""
            raise ServerError(f"{self._failed(where, response)}{hint}")
        listed = _mapping(response).get("data")
        if not isinstance(listed, list):
            raise ServerError(f"{where} sent what is no list of models: {self._words(response)}")
        names = [entry.get("id") for entry in listed if isinstance(entry, dict)]
        if self.model not in names:
            served = ", ".join(map(str, names[:5])) or "no model"
            raise ServerError(f"the server at {self.url} has {served}, and no {self.model}: name one of its own")

    @property
    def answers(self) -> int:
        """How many have come so far."""
        return self._answers

    async def answer(self, row: Row) -> Answer:
        """The answer to a row whose last message is the user's.

        Raises:
            SampleError: a row that cannot be asked, that the server refuses, or that it ends otherwise than by an answer.
            ServerError: the server cannot be asked, however often it is tried; or has refused so many rows at once, and answered none.
        """
        if not row["messages"] or row["messages"][-1]["role"] != "user":
            raise SampleError("cannot be asked: its last message is not the user's")
        messages = await asyncio.to_thread(_messages, row)  # pictures are read and decoded
        where, name = f"{self.url}/chat/completions", f"sample {row['id']!a}"
        response = await self._post(
            where, json.dumps({"model": self.model, "messages": messages, **self.settings}), name
        )
        if response.status_code in _OF_THE_ROW:
            self._refused += 1
            told = self._failed(where, response)
            if not self._answers and self._refused >= self.at_once:
                raise ServerError(f"the server has refused all of the first {self._refused} rows; {name}: {told}")
            raise SampleError(told)
        if response.status_code != 200:
            raise ServerError(f"{name}: {self._failed(where, response)}")
        answer, ended = _completion(response)
        if answer is None:
            raise ServerError(f"{name}: {where} sent what is no chat completion: {self._words(response)}")
        self._answers += 1
        if ended not in ("stop", "length"):
            raise SampleError(f"the server ended the answer for another reason: finish_reason {ended!a}")
        if any("\ud800" <= character <= "\udfff" for character in answer):
            raise SampleError("the answer holds half a Unicode character, which cannot be written")
        return Answer(answer.strip(), truncated=ended == "length")

    async def _post(self, where: str, body: str, name: str) -> httpx2.Response:
        """What the server sends back; tried again while it is busy or away."""
        for wait in (*WAITS_S, None):
            try:
                response = await self._client.post(where, content=body, headers={"Content-Type": "application/json"})
            except httpx2.RequestError as error:
                failure, asked_to_wait = f"{where}: {_reason(error)}", 0.0
                cause: Exception | None = error
            else:
                if response.status_code < 500 and response.status_code not in _PASSING:
                    return response
                failure, cause = self._failed(where, response), None
                asked_to_wait = _seconds(response.headers.get("retry-after", ""))
            if wait is None:
                raise ServerError(
                    f"{name}: {failure}; tried {len(WAITS_S) + 1} times. See what the server says, and give the same command again: "
                    "it goes on with the rows that are left"
                ) from cause
            await asyncio.sleep(max(wait, min(asked_to_wait, WAITS_S[-1])))
        raise AssertionError  # the last wait is None

    def _failed(self, where: str, response: httpx2.Response) -> str:
        moved = response.headers.get("location")
        to = f" to {moved}: give that address" if moved and response.is_redirect else ""
        hint = f" (a key is read from {KEY_VARIABLE})" if response.status_code in (401, 403) else ""
        return f"{where}: {response.status_code} {response.reason_phrase}{to}{hint}: {self._words(response)}"

    def _words(self, response: httpx2.Response) -> str:
        """How a body begins, without the key, which servers like to repeat."""
        text = " ".join(response.text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return ascii(text if len(text) <= _WORDS else f"{text[:_WORDS]}…")


def _messages(row: Row) -> list[dict[str, object]]:
    """The messages as the API has them; pictures are the bytes of their files.

    Raises:
        SampleError: pictures that cannot be used, or a video.
    """
    if any(part["type"] == "video" for message in row["messages"] for part in message["content"]):
        raise SampleError(
            "has a video, and a server is sent pictures alone: have a teacher answer that is loaded here, without --server"
        )
    pictures = []
    for image in row["images"]:
        try:
            with open_picture_file(image) as file:
                pictures.append({**image, "bytes": file.read()})
        except OSError as error:
            raise SampleError(f"image {image['path']!a} cannot be read: {error.strerror}") from error
    open_images(pictures, source=row.get("source"))
    urls = iter([_data_url(picture["bytes"]) for picture in pictures])
    messages: list[dict[str, object]] = []
    for message in row["messages"]:
        parts: list[dict[str, object]] = [
            {"type": "image_url", "image_url": {"url": next(urls)}}
            if part["type"] == "image"
            else {"type": "text", "text": part["text"] or ""}
            for part in message["content"]
        ]
        plain = all(part["type"] == "text" for part in parts)
        content = "".join(str(part["text"]) for part in parts) if plain else parts
        messages.append({"role": message["role"], "content": content})
    return messages


def _data_url(content: bytes) -> str:
    with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as picture:
        kind = picture.get_format_mimetype()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _completion(response: httpx2.Response) -> tuple[str | None, object]:
    """The text of the first choice, None where there is none to be had, and why it ended."""
    choices = _mapping(response).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict) or "content" not in message:
        return None, None
    text = "" if message["content"] is None else message["content"]
    return (text if isinstance(text, str) else None), choice.get("finish_reason")


def _mapping(response: httpx2.Response) -> dict[str, Any]:
    """A body that is a JSON object; empty where it is none."""
    try:
        body = response.json()
    except ValueError:  # JSON that is none, and bytes that are no text
        return {}
    return body if isinstance(body, dict) else {}


def _seconds(text: str) -> float:
    """A `Retry-After` of seconds; 0 where it is a date or nothing."""
    return float(text) if text.isascii() and text.isdecimal() else 0.0


def _reason(error: httpx2.RequestError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
