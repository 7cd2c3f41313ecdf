"""Models for the ablations over sizes: `python -m examples.world_weights.variants --out DIR`.

Of the shipped weights. Students with one, three and all four layers of the teacher's tower, where the usual one has two; and a teacher
with the students' small language model behind the whole tower, trained on pictures as the shipped teacher was.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from examples.world_weights.models import student_config, vision_config
from examples.world_weights.packing import Packer
from examples.world_weights.pretrain import revised, train_teacher
from switchkd.world.assets import student_path, teacher_path
from switchkd.world.write import once, samples

#: Which of the four layers of the teacher's tower a student keeps, by their number. Two are the usual ones.
LAYERS = {1: (0,), 2: (0, 3), 3: (0, 1, 3), 4: (0, 1, 2, 3)}


def student(vision_layers: int) -> LlavaForConditionalGeneration:
    """The usual student with another number of layers of the teacher's tower."""
    config = student_config()
    config.vision_config = vision_config(vision_layers, mlp=384)
    model = LlavaForConditionalGeneration(config)
    usual = LlavaForConditionalGeneration.from_pretrained(student_path()).state_dict()
    whole = LlavaForConditionalGeneration.from_pretrained(teacher_path()).model.vision_tower.encoder.layers
    layers = "model.vision_tower.encoder.layers."
    state = {name: value for name, value in usual.items() if not name.startswith(layers)}
    for place, layer in enumerate(LAYERS[vision_layers]):
        state |= {f"{layers}{place}.{name}": value for name, value in whole[layer].state_dict().items()}
    model.load_state_dict(state)
    return model


def small_teacher(processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """A teacher with the students' language model: half of the shipped one's weights behind the tower."""
    torch.manual_seed(seed)
    model = student(4)
    packer = Packer(processor.tokenizer)
    train_teacher(model, packer, samples(seed + 2, "train", "medium"), steps=500, learning_rate=1e-3)
    lessons = revised(samples(seed + 9, "train", "medium"), seed + 9)
    train_teacher(model, packer, lessons, steps=1400, learning_rate=1.5e-3)
    return model


def write(out: Path, seed: int = 0) -> None:
    """Write `out/student-N` for the numbers of layers, and `out/teacher-small`; what is there already stays."""
    processor = AutoProcessor.from_pretrained(teacher_path())
    makers: dict[str, Callable[[], LlavaForConditionalGeneration]] = {
        f"student-{count}": partial(student, count) for count in LAYERS
    }
    makers["teacher-small"] = partial(small_teacher, processor, seed)
    for name, make in makers.items():
        once(out / name, partial(_save, make, processor))


def _save(make: Callable[[], LlavaForConditionalGeneration], processor: LlavaProcessor, folder: Path) -> None:
    make().save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the models")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write(arguments.out, arguments.seed)
