"""Reading what people have: every supported file becomes the same rows (see `FEATURES`).

Formats, detected from the content: LLaVA JSON (`conversations` of human and gpt turns, `image`), and `messages` +
`images`; each in any container that `sources` reads.

What `<image>` means. In string content of a *user* turn, in a row that has images, it marks the place of an image;
there must be as many marks as images. Everywhere else it is text: in rows without images, in answers and system
turns, and in text parts of list content (where `{"type": "image"}` is the mark). One line break after a mark is
layout, which the chat template writes by itself.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ArrowBasedBuilder, Dataset, DatasetInfo, Features, Image, List, Split, SplitGenerator, Value
from datasets.exceptions import DatasetGenerationError

from switchkd.console import progress
from switchkd.data.cache_folder import cache_folder
from switchkd.data.errors import DataError, SampleError
from switchkd.data.images import image_path
from switchkd.data.sources import RawRow, raw_rows, source_identity, source_paths

#: The canonical row. `kinds` has one entry per assistant turn; `problem` says why a row cannot be used (None: nothing
#: found while reading) and is reported by `index.build_index`.
FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image(decode=False)),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "kinds": List(Value("string")),
        "problem": Value("string"),
    }
)
IMAGE_MARK = "<image>"
_LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_ROLES = {"user": "user", "assistant": "assistant", "system": "system"}
#: To be raised when this module makes other rows of the same file: what is in the cache counts no longer.
_VERSION = 1
#: Rows that are written at a time, fewer where they carry their images.
_CHUNK_ROWS, _CHUNK_BYTES = 1_000, 64 << 20

Row = dict[str, Any]


def load_rows(data: str | Path | Sequence[str | Path], image_root: str | Path | None = None) -> Dataset:
    """Read data files, whatever their format, into canonical rows (`FEATURES`).

    The first start writes the rows into the cache (`cache_folder`); later ones map them into memory from there, as long as every file has
    the path, size and time of change that it had.

    Image paths are relative to `image_root` (default: each file's folder); they become absolute here but are not opened.
    A row with a refused path keeps its place, without the image and with `problem` set. Missing ids become the row's
    number, from 0, over all files; a repeated id gets `#` and that number.

    Args:
        data: a file, a data set saved by `datasets`, a folder of Parquet or JSON files, a glob, or several of these.
        image_root: the folder that image paths begin in.

    Raises:
        DataError: naming file and line or row, for files that are missing, truncated or of unknown format, and for rows whose marks and
            images differ in number.
    """
    sources = [(path, _root(path, image_root)) for path in source_paths(data)]
    identity = _identity(sources)
    builder = _CanonicalRows(sources, identity, cache_dir=str(cache_folder("rows")))
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # ours is shown
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError | OSError):  # a fault of the file, or a full disk
            raise error.__cause__ from error.__cause__.__cause__
        raise
    finally:
        if not shown:
            datasets.enable_progress_bars()
    rows: Dataset = builder.as_dataset(split=Split.TRAIN)
    return rows


def _root(path: Path, image_root: str | Path | None) -> Path:
    root = Path(image_root) if image_root is not None else (path if path.is_dir() else path.parent)
    if not root.is_dir():
        raise DataError(f"image folder {root} (for {path}) does not exist")
    return root


def _identity(sources: list[tuple[Path, Path]]) -> str:
    """The same as long as nothing has changed that rows are made of."""
    files = [(str(path), source_identity(path), str(root.resolve())) for path, root in sources]
    return hashlib.blake2b(json.dumps([_VERSION, files]).encode(), digest_size=16).hexdigest()


class _CanonicalRows(ArrowBasedBuilder):  # type: ignore[misc]  # datasets ships no types
    """Writes the rows of all sources into the cache: wholly, or not at all."""

    def __init__(self, sources: list[tuple[Path, Path]], identity: str, *, cache_dir: str) -> None:
        self.sources = sources
        self.identity = identity
        super().__init__(cache_dir=cache_dir, config_name=identity)

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        pending: list[Row] = []
        pending_bytes = written = 0
        for row in progress(_canonical_rows(self.sources), "reading rows", None):
            pending.append(row)
            pending_bytes += sum(len(image["bytes"] or b"") for image in row["images"])
            if len(pending) == _CHUNK_ROWS or pending_bytes >= _CHUNK_BYTES:
                yield written, pa.Table.from_pylist(pending, FEATURES.arrow_schema)
                written, pending_bytes, pending = written + len(pending), 0, []
        if pending:
            yield written, pa.Table.from_pylist(pending, FEATURES.arrow_schema)
        if _identity(self.sources) != self.identity:
            raise DataError(f"{self.sources[0][0]}: the data changed while it was read; start again")


def _canonical_rows(sources: list[tuple[Path, Path]]) -> Iterator[Row]:
    """The rows of all sources, each with an id of its own."""
    ids: set[str] = set()
    count = 0
    for path, root in sources:
        before = count
        for raw in raw_rows(path):
            row = _canonical(raw, count, path, root)
            while row["id"] in ids:  # as in mix-665k, where tasks that share an image share its id
                row["id"] = f"{row['id']}#{count}"
            ids.add(row["id"])
            count += 1
            yield row
        if count == before:
            raise DataError(f"{path}: has no rows")


def _check_text(row: Row, where: str) -> None:
    """Refuse what cannot be written as UTF-8."""
    texts = [part["text"] for message in row["messages"] for part in message["content"] if part["text"]]
    try:
        "".join([row["id"], *texts, *(kind for kind in row["kinds"] if kind)]).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: text, id or kind holds half a Unicode character") from error


def _canonical(written: RawRow, number: int, path: Path, root: Path) -> Row:
    """One row as written -> one canonical row. `number` counts the rows of all files."""
    raw = written.content
    where = f"{path}, " + ("" if written.line is None else f"line {written.line}, ") + f"row {written.number}"
    if not isinstance(raw, dict):
        raise DataError(f"{where}: a row must be an object, not {type(raw).__name__}")
    identity = raw.get("id")
    row_id = str(number) if identity is None else str(identity)
    where += f" (id {row_id!a})"
    if isinstance(raw.get("conversations"), list):
        turns = [_turn(turn, "from", "value", _LLAVA_ROLES, where) for turn in raw["conversations"]]
    elif isinstance(raw.get("messages"), list):
        turns = [_turn(turn, "role", "content", _ROLES, where) for turn in raw["messages"]]
    else:
        raise DataError(
            f"{where}: unknown format; looked for a list `conversations` (LLaVA) or a list `messages` (with `images`), "
            f"but the row has the keys {', '.join(map(str, raw)) or '(none)'}"
        )
    if video := next((key for key in ("video", "videos") if raw.get(key)), None):
        raise DataError(
            f"{where}: has `{video}`; only images are supported, so leave the row out or give frames as images"
        )
    images = _image_list(raw, where)
    messages: list[Row] = [{"role": r, "content": _parts(r, content, bool(images), where)} for r, content in turns]
    marks = sum(part["type"] == "image" for message in messages for part in message["content"])
    if marks != len(images):
        raise DataError(f"{where}: {marks} image marks ({IMAGE_MARK}) but {len(images)} images; they must be equal")
    problem = None
    for position, image in enumerate(images):
        if image["bytes"] is not None:
            image["path"] = None  # only a name from elsewhere
            continue
        try:
            image["path"] = str(image_path(root, image["path"]))
        except SampleError as error:
            image["path"], problem = None, problem or f"image {position + 1} of {len(images)}: {error}"
    kinds = _kinds(raw, sum(role == "assistant" for role, _ in turns), where)
    row = {"id": row_id, "images": images, "messages": messages, "kinds": kinds, "problem": problem}
    _check_text(row, where)
    return row


def _turn(turn: Any, role_key: str, content_key: str, roles: dict[str, str], where: str) -> tuple[str, Any]:
    role = turn.get(role_key) if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{where}: each turn needs `{role_key}` to be one of {', '.join(roles)}, not {role!a}")
    return roles[role], turn.get(content_key)


def _parts(role: str, content: Any, has_images: bool, where: str) -> list[dict[str, str | None]]:
    """The content of one turn as text and image parts; neighbouring texts joined."""
    if isinstance(content, str):
        if role != "user" or not has_images:
            return [{"type": "text", "text": content}]
        first, *rest = content.split(IMAGE_MARK)
        parts: list[dict[str, str | None]] = [{"type": "text", "text": first}]
        for text in rest:
            parts += [{"type": "image", "text": None}, {"type": "text", "text": text.removeprefix("\n")}]
        return [part for part in parts if part["text"] != ""]
    if not isinstance(content, list):
        raise DataError(
            f"{where}: the content of a {role} turn must be text or a list of parts, not {type(content).__name__}"
        )
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            if parts and parts[-1]["type"] == "text":
                parts[-1]["text"] = f"{parts[-1]['text']}{part['text']}"
            else:
                parts.append({"type": "text", "text": part["text"]})
        elif kind == "image" and role == "user":
            if extra := [key for key, value in part.items() if key not in ("type", "text") and value is not None]:
                raise DataError(f"{where}: an image part carries `{extra[0]}`; list the row's images under `images`")
            parts.append({"type": "image", "text": None})
        else:
            raise DataError(
                f"{where}: a {role} turn has a part of type {kind!a}; supported are text parts with `text`, "
                "and image parts in user turns"
            )
    return parts


def _image_list(raw: Row, where: str) -> list[dict[str, Any]]:
    """The images of a row: a path, embedded bytes, `{bytes, path}`, or a list of these, under `image` or `images`."""
    if raw.get("image") is not None and raw.get("images") is not None:
        raise DataError(f"{where}: has both `image` and `images`; keep one")
    value = raw.get("images") if raw.get("images") is not None else raw.get("image")
    images = []
    for image in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(image, str):
            image = {"bytes": None, "path": image}
        elif isinstance(image, bytes):
            image = {"bytes": image, "path": None}
        content, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
        if not isinstance(content, bytes) and not (content is None and isinstance(name, str)):
            raise DataError(f"{where}: an image must be a path, bytes, or an object with `bytes` or `path`")
        images.append({"bytes": content, "path": name})
    return images


def _kinds(raw: Row, answers: int, where: str) -> list[str | None]:
    """One question kind per answer, from `kinds`, or from one `kind` for all, or None."""
    kinds = raw.get("kinds")
    if kinds is None:
        kinds = [raw.get("kind")] * answers
    if not isinstance(kinds, list) or not all(kind is None or isinstance(kind, str) for kind in kinds):
        raise DataError(f"{where}: `kind` must be text and `kinds` a list of texts, one per answer")
    if len(kinds) != answers:
        raise DataError(f"{where}: {len(kinds)} kinds but {answers} answers; they must be equal")
    return kinds
