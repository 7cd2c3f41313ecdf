"""Reading what people have: every supported file becomes the same rows (see `FEATURES`).

Formats, detected from the content: LLaVA JSON (`conversations` of human and gpt turns, `image`), and `messages` +
`images`; each as a JSON list, JSON lines, Parquet, or a folder written by `datasets.save_to_disk`.

What `<image>` means. In string content of a *user* turn, in a row that has images, it marks the place of an image;
there must be as many marks as images. Everywhere else it is text: in rows without images, in answers and system
turns, and in text parts of list content (where `{"type": "image"}` is the mark). One line break after a mark is
layout, which the chat template writes by itself.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets, load_from_disk

from switchkd.data.errors import DataError, SampleError
from switchkd.data.images import image_path

#: The canonical row. `kinds` has one entry per assistant turn; `problem` says why a row cannot be used (None: nothing
#: found while reading) and is reported by `guard.check_rows`.
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
_CHUNK_ROWS = 10_000

Row = dict[str, Any]


def load_rows(path: str | Path, image_root: str | Path | None = None) -> Dataset:
    """Read a data file or folder, whatever its format, into canonical rows (`FEATURES`).

    Image paths are relative to `image_root` (default: the file's folder); they become absolute here but are not opened.
    A row with a refused path keeps its place, without the image and with `problem` set. Missing ids become the row's
    number, from 0; a repeated id gets `#` and that number. The rows live in memory, images on disk stay there.

    Raises `DataError`, naming file and line or row, for files that are missing, truncated or of unknown format,
    and for rows whose marks and images differ in number.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else (path if path.is_dir() else path.parent)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not root.is_dir():
        raise DataError(f"image folder {root} (for {path}) does not exist")
    ids: Counter[str] = Counter()
    chunks: list[Dataset] = []
    pending: list[Row] = []
    for number, raw in enumerate(_raw_rows(path)):
        row = _canonical(raw, number, path, root)
        ids[row["id"]] += 1
        if ids[row["id"]] > 1:  # as in mix-665k, where tasks that share an image share its id
            row["id"] = f"{row['id']}#{number}"
        pending.append(row)
        if len(pending) == _CHUNK_ROWS:
            chunks.append(_table(pending, path))
            pending = []
    if not ids:
        raise DataError(f"{path}: has no rows")
    if pending:
        chunks.append(_table(pending, path))
    return concatenate_datasets(chunks)


def _table(rows: list[Row], path: Path) -> Dataset:
    try:
        return Dataset.from_list(rows, features=FEATURES)
    except UnicodeEncodeError as error:
        for row in rows:
            for part in (part for message in row["messages"] for part in message["content"]):
                if (part["text"] or "").encode(errors="replace").decode() != (part["text"] or ""):
                    raise DataError(f"{path}, id {row['id']!a}: text holds half a Unicode character") from error
        raise DataError(f"{path}: an id or a kind holds half a Unicode character: {error}") from error


def _raw_rows(path: Path) -> Iterator[Any]:
    """The rows as they were written, from any container."""
    if path.is_dir():
        yield from _saved_dataset_rows(path)
        return
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    elif head.startswith(b"["):
        yield from _parse(_text(path), path, 1)
    elif head.startswith(b"{"):
        for line_number, line in enumerate(_text(path).split("\n"), start=1):
            if line.strip():
                yield _parse(line, path, line_number)
    elif not head:
        raise DataError(f"{path}: is empty")
    else:
        raise DataError(
            f"{path}: unknown format; looked for a JSON list ('['), JSON lines ('{{'), Parquet ('PAR1') "
            f"or a folder written by save_to_disk, but the file starts with {head[:16]!r}"
        )


def _saved_dataset_rows(path: Path) -> Iterator[Row]:
    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{path}: is a folder, but not one written by datasets.save_to_disk (it has no state.json)")
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable saved data set: {error}") from error
    if isinstance(saved, DatasetDict):
        raise DataError(
            f"{path}: holds the splits {', '.join(saved)}; name one of them, such as {path / str(min(saved))}"
        )
    for batch in saved.with_format("arrow").iter(batch_size=256):  # Arrow storage: images stay undecoded
        yield from batch.to_pylist()


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text") from error


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}, line {line}, column {error.colno}: not valid JSON, perhaps cut off: {error.msg}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}, from line {first_line}: JSON cannot be read: {error}") from error


def _canonical(raw: Any, number: int, path: Path, root: Path) -> Row:
    """One row as written -> one canonical row."""
    if not isinstance(raw, dict):
        raise DataError(f"{path}, row {number}: a row must be an object, not {type(raw).__name__}")
    identity = raw.get("id")
    row_id = str(number) if identity is None else str(identity)
    where = f"{path}, row {number} (id {row_id!a})"
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
    return {
        "id": row_id,
        "images": images,
        "messages": messages,
        "kinds": _kinds(raw, sum(role == "assistant" for role, _ in turns), where),
        "problem": problem,
    }


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
