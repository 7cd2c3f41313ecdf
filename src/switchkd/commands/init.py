"""`switchkd init`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_model
from switchkd.commands.verb import Verb, model_libraries, say


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
    #: A checkpoint directory, a run or a hub name; the student then reads the same images and, where it can, the same tokens.
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
        for model in filter(None, (self.from_teacher, self.vision, self.language)):
            require_model(model)
        with model_libraries():
            from switchkd.convert import Start, init_student

        start = Start(self.from_teacher, self.vision, self.language, self.vision_layers, self.language_layers)
        init_student(start, self.output, seed=self.seed)
        say(f"the student is in {self.output}")
        return 0
