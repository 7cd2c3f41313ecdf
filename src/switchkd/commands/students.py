"""Commands about models before and after training: `init`, `convert`, `models`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from switchkd.commands.base import Verb, say


@dataclass(frozen=True)
class Init(Verb):
    """Make a student to train: cut it from its teacher, or put it together from smaller public models.

    A part that is not named is the teacher's. A projector between parts that were not made for each other is new.

    Example: switchkd init checkpoints/student --from-teacher checkpoints/llava-7b --vision-layers 12 --language-layers 16

    Example: switchkd init checkpoints/student --from-teacher checkpoints/tinyllava-3b --language Qwen/Qwen2.5-0.5B

    Example: switchkd init checkpoints/student --vision google/siglip-base-patch16-224 --language Qwen/Qwen2.5-0.5B
    """

    #: A new directory.
    output: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: A checkpoint directory or hub name; the student then reads the same images and, where it can, the same tokens.
    from_teacher: str | None = None
    #: A CLIP or SigLIP model for the student's vision encoder.
    vision: str | None = None
    #: A causal language model for the student.
    language: str | None = None
    #: Layers of the teacher's vision encoder to keep, evenly chosen, the first and the last among them.
    vision_layers: int | None = None
    #: Layers of the teacher's language model to keep, likewise.
    language_layers: int | None = None
    #: Of a new projector's weights.
    seed: int = 0

    def run(self, fields: Sequence[str]) -> int:
        """Write the student."""
        from switchkd.convert import Start, init_student

        start = Start(self.from_teacher, self.vision, self.language, self.vision_layers, self.language_layers)
        init_student(start, self.output, seed=self.seed)
        say(f"the student is in {self.output}")
        return 0


@dataclass(frozen=True)
class Convert(Verb):
    """Turn a TinyLLaVA Factory checkpoint into a Hugging Face LLaVA, or a LLaVA into a TinyLLaVA checkpoint.

    The weights stay the same, byte for byte, and so do the logits.

    Example: switchkd convert checkpoints/TinyLLaVA-Qwen2.5-3B-SigLIP checkpoints/tinyllava-3b

    Example: switchkd convert runs/mine/student exported --language Qwen/Qwen2.5-0.5B --vision google/siglip-so400m-patch14-384
    """

    #: A checkpoint directory, or a name on the Hugging Face hub; its config says which of the two formats it has.
    source: Annotated[Positional[str], arg(metavar="MODEL")]
    #: A new directory.
    target: Annotated[Positional[Path], arg(metavar="OUTPUT")]
    #: For TinyLLaVA's config, the hub name of the language model; a converted checkpoint remembers its own.
    language: str | None = None
    #: The hub name of the vision encoder, likewise.
    vision: str | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Convert."""
        from switchkd.convert import convert

        say(convert(self.source, self.target, language=self.language, vision=self.vision))
        return 0


@dataclass(frozen=True)
class Models(Verb):
    """List the model families that can be distilled, and which of their members are tested; others are refused.

    Example: switchkd models
    """

    def run(self, fields: Sequence[str]) -> int:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

        from switchkd.models.families import FAMILIES

        table = Table("model_type", "class", "vision encoders tested", "language models tested")
        for name, family in FAMILIES.items():
            members = (family.tested.get(part, ("its own",)) for part in ("vision_config", "text_config"))
            table.add_row(name, CLASSES[name], *map(", ".join, members))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        return 0
