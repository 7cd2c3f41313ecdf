"""`switchkd convert`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from switchkd.commands.verb import Verb, model_libraries, say


@dataclass(frozen=True)
class Convert(Verb):
    """Turn a TinyLLaVA Factory checkpoint into a Hugging Face LLaVA, or a LLaVA into a TinyLLaVA checkpoint.

    The weights stay the same, byte for byte, and so do the logits.

    Example: switchkd convert checkpoints/TinyLLaVA-Qwen2.5-3B-SigLIP checkpoints/tinyllava-3b

    Example: switchkd convert runs/mine/student exported --language Qwen/Qwen2.5-0.5B --vision google/siglip-so400m-patch14-384
    """

    #: A checkpoint directory, a run, or a name on the Hugging Face hub; its config says which of the two formats it has.
    source: Annotated[Positional[str], arg(metavar="MODEL")]
    #: A new directory.
    target: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: For TinyLLaVA's config, the hub name of the language model; a converted checkpoint remembers its own.
    language: str | None = None
    #: The hub name of the vision encoder, likewise.
    vision: str | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Convert."""
        from switchkd.models.refusals import refuse_absent

        refuse_absent(self.source)
        with model_libraries():
            from switchkd.convert import convert

        say(convert(self.source, self.target, language=self.language, vision=self.vision))
        return 0
