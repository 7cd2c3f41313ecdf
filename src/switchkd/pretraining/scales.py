"""How large the models of a world of photographs are, and how long each of their parts learns."""

from dataclasses import dataclass
from typing import Literal

from switchkd.world.photo_world import IMAGE_SIZES, ScaleName


@dataclass(frozen=True)
class TowerPlan:
    """A SigLIP-style vision encoder and how it learns what is in the cells of pictures."""

    width: int
    layers: int
    heads: int
    mlp: int
    #: Pictures are resized to so many pixels at a side, and cut into patches of so many.
    image_size: int
    patch: int
    steps: int
    batch: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.image_size % self.patch or self.side % 6:
            raise ValueError(
                f"{self.image_size} pixels in patches of {self.patch}: a side needs 6 patches or a multiple, so that cells of grids of "
                f"2 × 2 and 3 × 3 are made of whole patches"
            )

    @property
    def side(self) -> int:
        """Patches at a side."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class Lessons:
    """A training by `switchkd`'s own SFT."""

    steps: int
    batch: int
    learning_rate: float
    #: Of the vision encoder, which can see already.
    vision_learning_rate: float


@dataclass(frozen=True)
class Scale:
    """Everything that differs between a CPU and a GPU."""

    #: Side of the world's pictures in pixels.
    image_size: int
    tower: TowerPlan
    #: Of the student that does not fit its teacher.
    other_tower: TowerPlan
    #: The language half: those that ship with switchkd, which learn the new words by pictures given in words; or SmolLM2-135M.
    language: Literal["shipped", "smollm2"]
    #: Steps of 16 pictures given in words, for the teacher's language model and for students'.
    word_steps: int
    student_word_steps: int
    #: Steps of 32 pictures that a new projector is fitted on; for smollm2, steps in which it alone learns.
    projector_steps: int
    #: Pictures that the teacher learns from in the end, each with ten questions.
    pictures: int
    lessons: Lessons
    #: Layers that a student keeps of its teacher's vision encoder and, for smollm2, of its language model.
    student_layers: int
    student_language_layers: int | None = None


SCALES: dict[ScaleName, Scale] = {
    "cpu": Scale(
        image_size=IMAGE_SIZES["cpu"],
        tower=TowerPlan(128, 4, 4, 384, image_size=96, patch=16, steps=4000, batch=32, learning_rate=3e-3),
        other_tower=TowerPlan(96, 4, 4, 288, image_size=72, patch=6, steps=500, batch=32, learning_rate=3e-3),
        language="shipped",
        word_steps=1500,
        student_word_steps=600,
        projector_steps=300,
        pictures=4000,
        lessons=Lessons(steps=600, batch=16, learning_rate=1e-3, vision_learning_rate=3e-4),
        student_layers=2,
    ),
    "gpu": Scale(
        image_size=IMAGE_SIZES["gpu"],
        tower=TowerPlan(512, 10, 8, 2048, image_size=192, patch=16, steps=4000, batch=128, learning_rate=4e-4),
        other_tower=TowerPlan(384, 12, 6, 1536, image_size=144, patch=12, steps=3000, batch=128, learning_rate=5e-4),
        language="smollm2",
        word_steps=0,
        student_word_steps=0,
        projector_steps=300,
        pictures=20000,
        lessons=Lessons(steps=800, batch=32, learning_rate=1e-4, vision_learning_rate=3e-5),
        student_layers=5,
        student_language_layers=20,
    ),
}
