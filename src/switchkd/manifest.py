"""Checksums of the files of a folder, kept beside them in `manifest.json`, so that damage to any of them is noticed."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from switchkd.files import checksum

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_THREADS = 4


def checksums(folder: Path, names: list[str]) -> dict[str, str]:
    """Name → SHA-256 of files in a folder, several at a time."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(checksum, (folder / name for name in names)), strict=True))


def write_manifest(folder: Path, without: tuple[str, ...] = (), known: Mapping[str, str] | None = None) -> None:
    """Keep the checksums of all files that are in the folder now, but for some that may change.

    Args:
        folder: whose files they are.
        without: names that are left out.
        known: checksums of files that were copied from a folder whose manifest holds; they are not read again.
    """
    names = [name for name in _names(folder) if name not in (MANIFEST, *without)]
    there = {name: known[name] for name in names if name in known} if known else {}
    sums = there | checksums(folder, [name for name in names if name not in there])
    (folder / MANIFEST).write_text(json.dumps(dict(sorted(sums.items())), indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, str]:
    """Name → checksum.

    Raises:
        ValueError: if the file is missing, or something else than a list of checksums of files in this folder.
    """
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from None
    if not isinstance(sums, dict) or not sums:
        raise ValueError(f"{MANIFEST} is no list of checksums: expected file names with a SHA-256 each")
    for name, expected in sums.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
            raise ValueError(f"{MANIFEST} names {name!a}, which does not lie in the folder")
        if not isinstance(expected, str) or not _SHA256.fullmatch(expected):
            raise ValueError(f"{MANIFEST}: the checksum of {name!a} is {expected!a}, which is no SHA-256")
    return sums


def find_damage(folder: Path, concerns: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with the folder by its manifest, or None. Only files whose name `concerns` is true for are looked at.

    A file that is missing, that changed, that is not named, or that is a link out of the folder.
    """
    try:
        sums = {name: expected for name, expected in read_manifest(folder).items() if concerns(name)}
    except ValueError as error:
        return str(error)
    if missing := absent_files(folder, sums):
        return f"{missing[0]} is missing"
    there = [name for name in _names(folder) if name != MANIFEST and concerns(name)]
    if unnamed := sorted(set(there) - sums.keys()):
        return f"{unnamed[0]} is not named in {MANIFEST}"
    if outside := [name for name in sums if not (folder / name).resolve().is_relative_to(folder.resolve())]:
        return f"{outside[0]} is a link out of the folder"
    try:
        found = checksums(folder, list(sums))
    except OSError as error:
        return f"cannot be read: {error}"
    changed = [name for name, expected in sums.items() if found[name] != expected]
    return f"{changed[0]} does not match its checksum" if changed else None


def absent_files(folder: Path, names: dict[str, str]) -> list[str]:
    """Those of `names` that are no files of the folder."""
    return [name for name in names if not (folder / name).is_file()]


def _names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
