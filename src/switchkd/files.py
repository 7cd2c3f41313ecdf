"""Files and folders that are complete or not there at all."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_together(texts: Mapping[Path, str], errors: str = "backslashreplace") -> None:
    """Write all of these files, in this order, or none: a reader never finds half a file, and a full disk leaves what was there.

    Args:
        texts: file → its whole text. Folders are made where they are missing.
        errors: what becomes of half a character, as in `str.encode`.
    """
    staged = {target: target.with_name(f".{target.name}.{os.getpid()}") for target in texts}
    try:
        for target, staging in staged.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with naming_full_disks(target), staging.open("w", encoding="utf-8", errors=errors) as file:
                file.write(texts[target])
                file.flush()
                os.fsync(file.fileno())
        for target, staging in staged.items():
            os.replace(staging, target)
    finally:
        for staging in staged.values():
            staging.unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A place to write what then appears at `target` in one moment, on the disk."""
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming_full_disks(target):
            yield staging
            flush(staging)
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into. It becomes `target` when the block ends, and is removed if the block raises.

    What was at `target` stays there until the new folder is complete and on disk. One process at a time may do this for a target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, previous = (target.with_name(f".{target.name}.{ending}") for ending in ("partial", "previous"))
    if previous.exists() and not target.exists():
        os.rename(previous, target)  # killed between the two renames below
    for leftover in (staging, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        with naming_full_disks(target):
            yield staging
        settle(staging)
        if target.exists():
            os.rename(target, previous)
        os.rename(staging, target)
        flush(target.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def settle(folder: Path) -> None:
    """Have a folder and all in it on the disk, readable by those whom the user lets read it: safetensors keeps its files to their owner.

    The folder was made with the user's umask, and its files get the same permissions, without that to run them.
    """
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_symlink():
            continue
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        flush(path)


#: How Linux is asked to let a file share the blocks of another until one of them is written to (XFS, Btrfs and others can).
_FICLONE = 0x40049409


def copy_file(source: Path, target: Path) -> None:
    """A copy with the same times. Where the file system can, it shares the other's blocks, and no byte is written.

    It is no link: what is written into one of the two later, in place even, does not change the other.
    """
    with source.open("rb") as old, target.open("xb") as new:
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError:
            shutil.copyfileobj(old, new, 2**24)
    shutil.copystat(source, target)


#: What a disk says that takes no more: it is full, a quota is, it was mounted or has become read-only.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@contextmanager
def naming_full_disks(target: Path) -> Iterator[None]:
    """Have an error of a disk that takes no more name `target`, and say what to do: the system names no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(cannot_write(target, error.strerror or str(error))) from error


def cannot_write(target: Path, reason: str) -> str:
    """What is said of a file or folder that could not be written, with the room on its disk."""
    there = next(folder for folder in (target, *target.absolute().parents) if folder.exists())
    free_mib = shutil.disk_usage(there).free / 2**20
    return (
        f"{target} cannot be written: {reason}; {free_mib:.0f} MiB are free on that disk. What was complete before is still there: "
        "make room, or choose another folder, and run the same command again"
    )


#: (device, inode, size, times) of a file → its checksum.
_CHECKSUMS: dict[tuple[int, ...], str] = {}
#: A file that changed less than this ago could change again without another time: clocks of file systems are coarse.
_SETTLED_NS = 10**9


def checksum(path: Path) -> str:
    """The SHA-256 of a file. It is read again by the same process only if the file has changed."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in _CHECKSUMS:
        settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not settled:
            return digest
        _CHECKSUMS[key] = digest
    return _CHECKSUMS[key]


def flush(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
