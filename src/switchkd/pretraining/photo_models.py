"""Make the models of a world of photographs, part by part: a part that is there already is not made again.

At the scale of a CPU: a vision encoder on the labels of patches; the language models that ship with switchkd, taught the new words on
pictures given in words; projectors by least squares; the teacher then on pictures, by `switchkd`'s own SFT. The matched student has a
smaller language model and, of the teacher's encoder, the first and the last layer, as encoders are cut for deployment: it sees badly until
it is healed. The other student shares nothing with its teacher: an encoder of another width, resolution and patch size, and another
tokenizer. At the scale of a GPU the language half is SmolLM2-135M, and `switchkd init` puts the parts together.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast, SiglipVisionModel

from switchkd.console import say
from switchkd.convert import Start, init_student
from switchkd.distillation import distill
from switchkd.files import write_together
from switchkd.methods import SFT
from switchkd.pretraining.in_words import fit_projector, texts, train_language
from switchkd.pretraining.photo_stream import Squares
from switchkd.pretraining.scales import Scale, TowerPlan
from switchkd.pretraining.small_llava import begun, image_processor, pieces, small_processor, whole_words
from switchkd.pretraining.smollm2 import write_smollm2
from switchkd.pretraining.tower import device, train_tower
from switchkd.recipe.schema import Data, LearningRates, Recipe, Stage, Student, Train
from switchkd.world import once, student_path, teacher_path
from switchkd.world.photo_world import hold_splits, write_photos
from switchkd.world.photographs import Photographs

#: Tokens of the other student's tokenizer, beside one for every word of a class.
OTHER_TOKENS = 290
#: Pictures whose questions a tokenizer is trained on.
_READ = 2000


def make_models(photographs: Photographs, output: Path, scale: Scale, *, seed: int = 0) -> None:
    """Write `output/teacher`, `output/student` and `output/student-other`, from photographs of the training split.

    Raises:
        DataError: a photograph cannot be decoded, or photographs have changed since a part was made.
        ImportError: the packages of the language half are missing.
        FloatingPointError: a training diverged.
    """
    hold_splits(output, photographs)
    maker = _Maker(photographs, output, scale, seed)
    make = maker.teacher_of_words if scale.language == "shipped" else maker.teacher_of_smollm2
    once(maker.part("start"), make)
    once(output / "teacher", maker.taught)
    matched = maker.student_of_words if scale.language == "shipped" else maker.student_of_smollm2
    once(output / "student", matched)
    other = maker.other_of_words if scale.language == "shipped" else maker.other_of_smollm2
    once(output / "student-other", other)


@dataclass(frozen=True)
class _Maker:
    photographs: Photographs
    output: Path
    scale: Scale
    seed: int

    def part(self, name: str, make: Callable[[Path], object] | None = None) -> Path:
        """Where a part lies; made first, where `make` is given and it is missing."""
        folder = self.output / "making" / name
        if make is not None:
            once(folder, make)
        return folder

    @cached_property
    def squares(self) -> Squares:
        return Squares(self.photographs, "train", self.scale.image_size)

    def tower(self, name: str, plan: TowerPlan, seed: int) -> Path:
        """The folder of a vision encoder with its image processor."""

        def make(folder: Path) -> None:
            train_tower(plan, self.squares, seed=seed).save_pretrained(folder)
            image_processor(plan).save_pretrained(folder)

        return self.part(name, make)

    # ---- with the language models that ship with switchkd

    def teacher_of_words(self, folder: Path) -> None:
        tokenizer = whole_words(texts(self.squares, self.seed, _READ), self.photographs.classes)
        tower = self.tower("vision", self.scale.tower, self.seed + 1)
        self._connected(
            teacher_path(), tokenizer, self.scale.tower, tower, folder, steps=self.scale.word_steps, seed=self.seed + 3
        )

    def student_of_words(self, folder: Path) -> None:
        def connect(whole: Path) -> None:
            tokenizer = AutoProcessor.from_pretrained(self.output / "teacher").tokenizer
            tower, steps = self.output / "teacher", self.scale.student_word_steps
            self._connected(student_path(), tokenizer, self.scale.tower, tower, whole, steps=steps, seed=self.seed + 7)

        whole = self.part("connected", connect)
        init_student(Start(teacher=str(whole), vision_layers=self.scale.student_layers), folder, seed=self.seed)

    def other_of_words(self, folder: Path) -> None:
        plan = self.scale.other_tower
        tower = self.tower("vision-other", plan, self.seed + 11)
        torch.manual_seed(self.seed)
        words = {word for name in self.photographs.classes for word in name.split()}
        tokenizer = pieces(texts(self.squares, self.seed, _READ), OTHER_TOKENS + len(words))
        steps = self.scale.student_word_steps
        self._connected(student_path(), tokenizer, plan, tower, folder, steps=steps, seed=self.seed + 13)

    def _connected(
        self,
        begin: Path,
        tokenizer: PreTrainedTokenizerFast,
        plan: TowerPlan,
        tower: Path,
        folder: Path,
        *,
        steps: int,
        seed: int,
    ) -> None:
        """Write a LLaVA whose language model has learned in words, with a projector fitted to the encoder in `tower`."""
        torch.manual_seed(seed)
        template = AutoProcessor.from_pretrained(begin).chat_template
        model = begun(begin, tokenizer, plan, self.photographs.classes)
        train_language(model, tokenizer, self.squares, plan, steps=steps, seed=seed)
        model.model.vision_tower.load_state_dict(_tower_in(tower).state_dict())
        fit_projector(model, tokenizer, self.squares, plan, steps=self.scale.projector_steps, seed=seed + 1)
        model.save_pretrained(folder)
        small_processor(tokenizer, plan, template).save_pretrained(folder)

    # ---- with SmolLM2

    def teacher_of_smollm2(self, folder: Path) -> None:
        language = self.part("language", write_smollm2)
        tower = self.tower("vision", self.scale.tower, self.seed + 1)
        _join(tower, language, folder, self.seed)

    def student_of_smollm2(self, folder: Path) -> None:
        start = Start(
            teacher=str(self.output / "teacher"),
            vision_layers=self.scale.student_layers,
            language_layers=self.scale.student_language_layers,
        )
        init_student(start, folder, seed=self.seed)

    def other_of_smollm2(self, folder: Path) -> None:
        tower = self.tower("vision-other", self.scale.other_tower, self.seed + 11)
        language = self.part("language", write_smollm2)
        begun = self.part("other-start", lambda new: _join(tower, language, new, self.seed))
        self._train(begun, "align-other", (self._align(),), folder)

    # ---- on pictures

    def taught(self, folder: Path) -> None:
        """Train the teacher on pictures, each with ten questions."""
        teach = Stage("teach", max_steps=self.scale.lessons.steps)
        stages = (teach,) if self.scale.language == "shipped" else (self._align(), teach)
        self._train(self.part("start"), "teach", stages, folder)

    def _align(self) -> Stage:
        """A new projector learns alone, between an encoder and a language model that know nothing of each other."""
        return Stage("align", train=("projector",), max_steps=self.scale.projector_steps, learning_rate=1e-3)

    def _train(self, student: Path, name: str, stages: tuple[Stage, ...], folder: Path) -> None:
        def write(data: Path) -> None:
            write_photos(
                data,
                self.photographs,
                train=self.scale.pictures,
                validation=0,
                test=0,
                seed=f"teacher {self.seed}",
                image_size=self.scale.image_size,
            )

        data, lessons, run = self.part("pictures", write), self.scale.lessons, self.part(name)
        say(f"{name}: training in {run}")
        done = distill(
            Recipe(
                student=Student(str(student)),
                method=SFT(),
                data=Data(str(data / "train.json"), max_length=1024),
                train=Train(
                    str(run),
                    per_device_train_batch_size=lessons.batch,
                    learning_rate=lessons.learning_rate,
                    learning_rates=LearningRates(vision=lessons.vision_learning_rate),
                    weight_decay=0.05,
                    save_total_limit=1,
                    logging_steps=50,
                    bf16=device() == "cuda",
                    seed=self.seed,
                    report_to=(),
                ),
                stages=stages,
            )
        )
        shutil.copytree(done.folder, folder, dirs_exist_ok=True)


def _join(tower: Path, language: Path, folder: Path, seed: int) -> None:
    """A LLaVA of two public models, whose features are what the encoder's last layer gives: that is where it learned."""
    init_student(Start(vision=str(tower), language=str(language)), folder, seed=seed)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_together({folder / "config.json": json.dumps(config | {"vision_feature_layer": -1}, indent=2) + "\n"})


def _tower_in(folder: Path) -> SiglipVisionModel:
    """The vision encoder in `folder`, alone or in a LLaVA."""
    if "LlavaForConditionalGeneration" in (folder / "config.json").read_text(encoding="utf-8"):
        tower: SiglipVisionModel = LlavaForConditionalGeneration.from_pretrained(folder).model.vision_tower
        return tower
    alone: SiglipVisionModel = SiglipVisionModel.from_pretrained(folder)
    return alone
