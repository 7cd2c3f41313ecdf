"""A disk as it is after the power has gone: what nobody flushed is dropped.

The model is that of POSIX, without the favours of any file system. The bytes of a file are those of its last fsync, the names in a folder
those of the folder's last fsync; anything later may be there or not. It looks at names before every file operation of Python and at bytes
at every fsync, so that files that C or Rust code writes count too.

It cannot see: a disk that lies about a flush, half a sector, writes of one file that arrive in another order than they were made, and
whatever lies outside the folder it watches.
"""

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class PowerLoss:
    """How the power goes.

    `names`: of changes of names that are not flushed, `none` are kept, or `all`, or `some` (folder by folder, at random). Bytes that are
    not flushed are gone: the file is empty, or cut at random where `some` names are kept.
    """

    names: str
    seed: int
    #: Where the folder is written as the disk holds it.
    into: Path


@dataclass
class _Folder:
    flushed: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)


class DiskWithoutPower:
    """Follows the folder `root`, which and whose parents are on the disk with their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers: dict[int, int] = {}
        self._folders: dict[int, _Folder] = {}
        self._bytes: dict[int, bytes] = {}
        self._next = 0
        if root.exists():
            self.look()
            for folder in self._folders.values():
                folder.flushed = dict(folder.now)
            for path in root.rglob("*"):
                if path.is_file():
                    self._bytes[self._numbers[path.stat().st_ino]] = path.read_bytes()

    def look(self) -> None:
        """Take in the names of all folders."""
        seen: set[int] = set()
        self._list(self.root, seen)
        for inode in self._numbers.keys() - seen:  # another file may get the inode
            del self._numbers[inode]

    def _list(self, path: Path, seen: set[int]) -> int | None:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        seen.add(status.st_ino)
        if status.st_ino not in self._numbers:
            self._numbers[status.st_ino] = self._next
            self._next += 1
        number = self._numbers[status.st_ino]
        if stat.S_ISDIR(status.st_mode):
            names = {name: self._list(path / name, seen) for name in sorted(os.listdir(path))}
            folder = self._folders.setdefault(number, _Folder())
            folder.now = {name: held for name, held in names.items() if held is not None}
        return number

    def flushed(self, descriptor: int) -> None:
        """`descriptor` has been fsynced."""
        self.look()
        number = self._numbers.get(os.fstat(descriptor).st_ino)
        if number is None:  # outside
            return
        if number in self._folders:
            self._folders[number].flushed = dict(self._folders[number].now)
        else:
            self._bytes[number] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def fail(self, power: PowerLoss) -> tuple[int, int]:
        """Write what is left, and return how many files lost bytes and how many names were not as they had been."""
        self.look()
        contents = {self._numbers[p.stat().st_ino]: p.read_bytes() for p in self.root.rglob("*") if p.is_file()}
        draw = random.Random(power.seed)
        lost = {"files": 0, "names": 0}

        def write(number: int, target: Path) -> None:
            folder = self._folders.get(number)
            if folder is None:
                held, now = self._bytes.get(number), contents.get(number, b"")
                if held is None:
                    held = now[: draw.randrange(len(now) + 1)] if power.names == "some" else b""
                lost["files"] += held != now
                target.write_bytes(held)
                return
            kept = {"none": False, "all": True, "some": draw.random() < 0.5}[power.names]
            names = folder.now if kept else folder.flushed
            lost["names"] += len(names.items() ^ folder.now.items())
            target.mkdir()
            for name, held_number in names.items():
                write(held_number, target / name)

        if self.root.exists():
            write(self._numbers[os.lstat(self.root).st_ino], power.into)
        return lost["files"], lost["names"]
