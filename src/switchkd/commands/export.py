"""`switchkd export`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_model
from switchkd.commands.verb import Verb, fail, model_libraries, say, warn


@dataclass(frozen=True)
class Export(Verb):
    """Write a model for others: weights of one precision in files of a size, processor, template and card; checked for vLLM and llama.cpp.

    Example: switchkd export runs/mine exported --dtype bfloat16

    Example: switchkd export runs/mine exported --dtype bfloat16 --push me/my-student --license apache-2.0
    """

    #: A checkpoint directory, a run, or a name on the Hugging Face hub.
    model: Annotated[Positional[str], arg(metavar="STUDENT")]
    #: A new directory.
    output: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: Of the weights; auto keeps the checkpoint's.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: Of the weights, the largest file: 5GB, 500MB.
    shard: str = "5GB"
    #: Of the card; by default what the model's own card says.
    license: str | None = None
    #: Also upload it to the Hugging Face hub, as OWNER/NAME; the token is that of `hf auth login`, or HF_TOKEN.
    push: str | None = None
    #: With --push: a new repository is private.
    private: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Write, and say how it is served."""
        if not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", self.shard):
            return fail(f"--shard {self.shard}: write a whole number and KB, MB or GB, as in 5GB", 2)
        if self.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
            return fail(f"--push {self.push}: write OWNER/NAME, the repository on the Hugging Face hub", 2)
        if self.private and self.push is None:
            return fail("--private is for --push OWNER/NAME", 2)
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            return fail(f"{self.output} already exists: choose another folder, or remove it", 1)
        require_model(self.model)
        with model_libraries():
            from switchkd.export.exported_model import export
            from switchkd.train.upload import make_repository, send

        if self.push is not None:  # before minutes are spent
            make_repository(self.push, private=self.private, asked="--push")
        done = export(self.model, self.output, dtype=self.dtype, shard=self.shard, license_name=self.license)
        files = "one file" if done.files == 1 else f"{done.files} files"
        say(f"the model is in {done.folder}: {_bytes(done.size)} of {done.dtype} weights in {files}")
        for one in done.engines:
            say(f"{one.engine}: {'; '.join(one.commands) or f'no, {one.reason}'}")
        if done.license is None:
            warn("its card names no licence, because the model that it was trained from names none: add --license NAME")
        if self.push is not None:
            send(done.folder, self.push, message="Exported by switchkd")
            say(f"uploaded to {self.push}")
        return 0


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
