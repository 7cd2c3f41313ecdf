"""WebDataset: an archive in which neighbours of one name make a row: `1.jpg`, `1.json`.

Nothing is unpacked to the disk, links are not followed, and no member is decoded but pictures, JSON and text: no pickle, tensor or array.
"""

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from switchkd.data.errors import DataError, SampleError
from switchkd.data.gzipped import open_data
from switchkd.data.json_list import LONGEST_ROW_BYTES

_PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
_BLOCK_BYTES = 1 << 16


def read_tar(path: Path) -> Iterator[Any]:
    """The rows of an archive: what the JSON of each says, its texts by their names, and its pictures as `image` or `images`.

    An archive ends with its end mark, blocks of zeros; one block is enough, for a cut within the mark has lost nothing.

    Raises:
        DataError: not a readable archive: damaged, without an end mark (GNU tar reads such a one, but members may have been cut off),
            or with another archive behind it.
    """
    try:
        with open_data(path) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
            for (folder, stem), members in groupby(_members(archive), lambda member: member[0]):
                yield _row(f"{folder}{stem}", [(name, content) for _, name, content in members])
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{path}: not a readable archive, perhaps cut off: {error}") from error


class _Member(tarfile.TarInfo):
    """A member, whose header must be whole: `tarfile` takes a damaged or a missing one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        begin = archive.offset
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark; the types of the library lack these two
            raise
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(
                f"it ends at byte {begin:,} without an end mark, so members behind it may be missing; copy or write it again. If it is "
                "surely whole, unpack it from gzip and give it its end mark: head -c 1024 /dev/zero >> FILE.tar"
            ) from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the member at byte {begin:,} has a damaged header ({error})") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise unless nothing but zeros is behind the end mark."""
    behind: Any = archive.fileobj
    while block := behind.read(_BLOCK_BYTES):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                f"its end mark is at byte {archive.offset:,}, and more than zeros is behind it, as where archives were joined by cat: "
                "name each archive, or join them with tar --concatenate"
            )


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tuple[str, str], str, bytes | str | SampleError]]:
    """Folder and name of each file up to the first dot, its ending, and its content, or a word of what is not decoded."""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # an archive keeps what it has read
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if member.isdir() or not stem:
            continue
        file = archive.extractfile(member) if member.isfile() else None
        kind = ending.lower().rpartition(".")[2]
        content: bytes | str | SampleError
        if file is None:
            content = SampleError(f"{member.name!a} is a link or no file")
        elif kind not in (*_PICTURES, "json", "txt"):
            content = "a file that is not decoded"
        elif member.size > LONGEST_ROW_BYTES:
            raise DataError(f"{member.name!a} is longer than {LONGEST_ROW_BYTES >> 20} MiB")
        else:
            content = file.read()
        yield (f"{folder}/" if folder else "", stem), ending, content
    _check_end(archive)


def _row(key: str, members: list[tuple[str, bytes | str | SampleError]]) -> Any:
    """The row of the files of one name."""
    row: dict[str, Any] = {}
    pictures: list[tuple[str, bytes]] = []
    others: dict[str, Any] = {}
    try:
        for ending, content in members:
            name, _, kind = ending.lower().rpartition(".")
            if isinstance(content, SampleError):
                return content
            if isinstance(content, str):
                others[ending or "a file without an ending"] = content
            elif kind == "txt":
                others[name or "txt"] = content.decode("utf-8-sig")
            elif kind == "json":
                said = json.loads(content)
                if row or not isinstance(said, dict):
                    return SampleError("its JSON must be one object")
                row = said
            else:
                pictures.append((f"{key.rpartition('/')[2]}.{ending}", content))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        return SampleError(f"{key!a}: its text cannot be read: {error}")
    if twice := sorted(row.keys() & others.keys()):
        return SampleError(f"{key!a} has `{twice[0]}` in its JSON and as a file of its own; keep one")
    try:
        return {"id": key} | _with_pictures(row, pictures) | others
    except SampleError as error:
        return error


def _with_pictures(row: dict[str, Any], pictures: list[tuple[str, bytes]]) -> dict[str, Any]:
    """The row with its pictures: in the order in which its JSON names them, or in that of their names."""
    if not pictures:
        return row
    images = {name: {"bytes": content, "path": None} for name, content in sorted(pictures)}
    named = row.get("images") or row.get("image") or []
    names = [Path(str(name)).name for name in (named if isinstance(named, list) else [named])]
    if names and len(images) > 1 and set(names) != images.keys():
        raise SampleError(
            f"its JSON names the pictures {', '.join(names)}, and the archive holds {', '.join(images)} under its name"
        )
    rest = {name: value for name, value in row.items() if name not in ("image", "images")}
    return rest | {"images": [images[name] for name in names if name in images] or list(images.values())}
