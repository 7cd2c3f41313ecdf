"""Data sets of the Hugging Face hub, and folders like theirs: NAME, NAME:CONFIG, NAME:CONFIG:SPLIT or NAME::SPLIT.

No code of a data set runs (`datasets` runs none), no pickle is opened, and none of its files may lie elsewhere.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from huggingface_hub import metadata_load

from switchkd.data.containers import RawRow, stored_rows
from switchkd.data.errors import DataError

#: A folder or OWNER/NAME, a configuration and a split.
_NAME = re.compile(r"([^:]+)(:[^:]*)?(:.+)?")
_OF_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
#: What may be decoded of members of archives: no tensors, arrays and pickles.
_DECODED = ("txt", "text", "transcript", "cls", "cls2", "index", "inx", "id", "json", "jsn")


def named_set(name: str) -> "HubSet | None":
    """The data set of this name, of the hub or of a folder that is like one there; None where it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    path, config, split = (part and part.removeprefix(":") for part in found.groups())
    folder = Path(path)
    if not folder.is_dir() and not _OF_HUB.fullmatch(path):
        return None
    return HubSet(name, folder if folder.is_dir() else None, path, config or None, split or None)


class HubSet:
    """One split of a data set of the hub, or of a folder that holds a copy of one."""

    columns: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __init__(self, name: str, folder: Path | None, path: str, config: str | None, split: str | None) -> None:
        self.name = name
        self.folder, self.path, self.config, self.split = folder, path, config, split
        #: Known when it has been looked up.
        self.version = ""
        #: Where `datasets` unpacks pictures.
        self.root = folder or Path(datasets.config.HF_CACHE_HOME)

    def identity(self) -> str:
        """What `datasets` keeps of it."""
        return f"{self.name} {self.loaded._fingerprint}"

    def rows(self) -> Iterator[RawRow]:
        """Its rows, with images undecoded."""
        return stored_rows(self.loaded)

    def shards(self) -> list["HubShard"]:
        """Its files, as they are read one after another and without a copy; rows with images undecoded."""
        stream = self._load(streaming=True)
        count = stream.num_shards
        return [HubShard(self, stream.shard(count, number), number) for number in range(count)]

    @cached_property
    def loaded(self) -> Dataset:
        """All of its rows."""
        return self._load(streaming=False)

    def _load(self, *, streaming: bool) -> Any:
        try:
            if self.folder is not None:
                self._refuse_files_outside()
            with _only_plain_members():
                builder = datasets.load_dataset_builder(str(self.folder or self.path), self.config)
                self._check_files(builder)
                self.version = "/".join(
                    Path(builder.cache_dir).parts[-3:]
                )  # datasets puts a digest of the files into it
                splits = [str(split) for split in builder.info.splits or builder.config.data_files or ()]
                split = self.split or (splits[0] if len(splits) == 1 else None)
                if split is None:
                    raise DataError(
                        f"{self.name}: has the splits {', '.join(splits)}; name one: {self.path}:{self.config or ''}:{splits[0]}"
                    )
                return datasets.load_dataset(
                    str(self.folder or self.path), self.config, split=split, streaming=streaming
                )
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, DatasetGenerationError) as error:
            reason = " ".join(str(error).split())
            missing = "" if self.folder else "no such file or folder, and as a data set of the Hugging Face hub: "
            way_out = (
                ". It is offline (HF_HUB_OFFLINE): load it once where there is a network, or copy it here"
                if self.folder is None and datasets.config.HF_HUB_OFFLINE
                else ""
            )
            raise DataError(f"{self.name}: {missing}{reason}{way_out}") from error

    def _refuse_files_outside(self) -> None:
        """Raise DataError where the card of a folder names files that lie elsewhere: datasets would open or fetch them."""
        card = Path(self.path) / "README.md"
        metadata: Any = metadata_load(card) if card.is_file() else None
        for text in _texts(metadata.get("configs")) if isinstance(metadata, dict) else ():
            if "://" in text or "::" in text or Path(text).is_absolute() or ".." in Path(text).parts:
                raise DataError(f"{card} names {text!a}, a file outside of its folder: remove that entry")

    def _check_files(self, builder: Any) -> None:
        """Raise DataError where files that would be read are not the data set's own."""
        own = f"hf://datasets/{self.path}@" if self.folder is None else str(self.folder.resolve())
        files = builder.config.data_files if isinstance(builder.config.data_files, dict) else {}
        for name in (str(name) for names in files.values() for name in names):
            if not (name.startswith(own) if self.folder is None else Path(name).resolve().is_relative_to(own)):
                raise DataError(f"{self.name}: reads {name!a}, which is no file of its own")


class HubShard:
    """One file of a data set of the hub, read as it comes."""

    columns: dict[str, str] = {}  # noqa: RUF012  # never changed

    def __init__(self, whole: HubSet, rows: IterableDataset, number: int) -> None:
        self.name = f"{whole.name}, shard {number}"
        self.root = whole.root
        self._rows = rows
        self._version = whole.version

    def identity(self) -> str:
        """Which file of which version of the data set."""
        return f"{self.name} of {self._version}"

    def rows(self) -> Iterator[RawRow]:
        """Its rows, with images undecoded."""
        with _only_plain_members():
            yield from stored_rows(self._rows)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


@contextmanager
def _only_plain_members() -> Iterator[None]:
    """Within it, `datasets` decodes text, numbers and JSON of archives, and leaves tensors, arrays and pickles as bytes."""
    decoders = WebDataset.DECODERS
    WebDataset.DECODERS = {name: decoders[name] for name in _DECODED}
    try:
        yield
    finally:
        WebDataset.DECODERS = decoders
