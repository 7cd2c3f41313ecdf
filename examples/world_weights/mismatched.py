"""Students that differ from the shipped teacher, in one thing or in all: `python -m examples.world_weights.mismatched --out DIR`.

`DIR/width`: features of 96 instead of 128. `DIR/tokens`: images of 60 pixels in patches of 20 instead of 48 in patches of 8, so 9 visual
tokens instead of 36. `DIR/encoder`: of the same shape, but trained by itself. `DIR/tokenizer`: a BPE whose words begin with ▁, behind the
eyes of the shipped student. `DIR/all`: everything at once. The language model is the shipped student's, each new token begun as the mean of
the old ones of its text. A new encoder was trained on what the cells of the world's pictures hold and then pruned: it sees badly and can
learn again. So the switch goes over a bridge, each model reads its own pixels and tokens, and answers are aligned by their text.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from examples.world_weights.models import CHAT_TEMPLATE, IMAGE, PATCH, UNKNOWN, VISION_WIDTH, student_config
from examples.world_weights.packing import batches, patch_labels
from switchkd.pretraining.small_llava import pieces
from switchkd.world.assets import student_path
from switchkd.world.draw import IMAGE_SIZE
from switchkd.world.scenes import COLOURS, COLUMNS, DIGITS, GRID, ROWS, SHAPES, SIZES
from switchkd.world.write import once, samples

LAYERS = 4
TOKENIZER_WORDS = 290
#: Share of the encoder's weights that are set to 0 in the end.
PRUNED = 0.7
_FORMS = SHAPES + DIGITS


@dataclass(frozen=True)
class Eyes:
    """The shape of a vision encoder; as it stands here the teacher's."""

    width: int = VISION_WIDTH
    image_size: int = IMAGE_SIZE
    patch: int = PATCH

    @property
    def side(self) -> int:
        """Patches at a side."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class Student:
    """What a student has of its own; None: the eyes of the shipped one."""

    eyes: Eyes | None = None
    tokenizer: bool = False


STUDENTS = {
    "width": Student(Eyes(width=96)),
    "tokens": Student(Eyes(image_size=60, patch=20)),
    "encoder": Student(Eyes()),
    "tokenizer": Student(tokenizer=True),
    "all": Student(Eyes(width=96, image_size=60, patch=20), tokenizer=True),
}


def write(name: str, folder: Path, tower_steps: int = 400, projector_steps: int = 1000) -> None:
    """One of `STUDENTS` and its processor."""
    torch.manual_seed(0)
    eyes = STUDENTS[name].eyes
    old = LlavaForConditionalGeneration.from_pretrained(student_path())
    words = AutoTokenizer.from_pretrained(student_path())
    tokenizer = train_tokenizer() if STUDENTS[name].tokenizer else words
    student = new_student(old, words, tokenizer, eyes)
    shape = eyes or Eyes()
    size = {"height": shape.image_size, "width": shape.image_size}
    images = SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=shape.patch,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )
    if eyes is None:
        student.model.vision_tower.load_state_dict(old.model.vision_tower.state_dict())
        student.model.multi_modal_projector.load_state_dict(old.model.multi_modal_projector.state_dict())
    else:
        train_eyes(student, images, eyes, tower_steps)
        connect(student, images, eyes, old.model.language_model.embed_tokens, words, projector_steps)
        prune(student, PRUNED)
    student.generation_config.eos_token_id = tokenizer.eos_token_id
    student.generation_config.pad_token_id = tokenizer.pad_token_id
    student.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """BPE in the manner of SentencePiece."""
    texts = (
        text
        for _, questions, _ in itertools.islice(samples(0, "train", "medium"), 2000)
        for question in questions
        for text in (question.text, question.answer)
    )
    return pieces(texts, TOKENIZER_WORDS)


def new_student(
    old: LlavaForConditionalGeneration,
    words: PreTrainedTokenizerBase,
    tokenizer: PreTrainedTokenizerBase,
    eyes: Eyes | None,
) -> LlavaForConditionalGeneration:
    """The old student's language model, told in the words of the new tokenizer, behind eyes that know nothing yet."""
    usual = student_config()
    vision = usual.vision_config
    if eyes is not None:
        vision = SiglipVisionConfig(
            hidden_size=eyes.width,
            intermediate_size=3 * eyes.width,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            image_size=eyes.image_size,
            patch_size=eyes.patch,
            vision_use_head=False,
        )
    text = usual.text_config
    assert isinstance(text, Qwen2Config)
    text.vocab_size, text.eos_token_id, text.pad_token_id = (
        len(tokenizer),
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    student = LlavaForConditionalGeneration(config)
    old_words, new_words = old.model.language_model.embed_tokens, student.model.language_model.embed_tokens
    learned = {n: p for n, p in old.model.language_model.state_dict().items() if "embed_tokens" not in n}
    student.model.language_model.load_state_dict(learned, strict=False)
    with torch.no_grad():  # every new token begins as the mean of the old ones that its text had
        for index in range(len(tokenizer)):
            ids = [index] if tokenizer is words else spelled(tokenizer, index, words)
            new_words.weight[index] = old_words.weight[ids].mean(0)
            student.lm_head.weight[index] = old.lm_head.weight[ids].mean(0)
    return student


def spelled(tokenizer: PreTrainedTokenizerBase, index: int, words: PreTrainedTokenizerBase) -> list[int]:
    """The old tokenizer's ids for the text of a new token."""
    text = str(tokenizer.convert_ids_to_tokens(index))
    inside = not text.startswith("▁")
    whole = f"##{text}"
    if inside and whole in words.get_vocab():
        return [words.get_vocab()[whole]]
    ids: list[int] = words(text.replace("▁", " "), add_special_tokens=False)["input_ids"]
    return ids or [words.get_vocab()[UNKNOWN]]


def seen(
    student: LlavaForConditionalGeneration, images: SiglipImageProcessorPil, pictures: Sequence[np.ndarray]
) -> Float[Tensor, "pictures patches width"]:
    """What its eyes make of pictures."""
    pixels = images(list(pictures), return_tensors="pt")["pixel_values"]
    features: Tensor = student.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return features


def train_eyes(student: LlavaForConditionalGeneration, images: SiglipImageProcessorPil, eyes: Eyes, steps: int) -> None:
    """Train the encoder on what is in the cell of each patch, and where the cell is."""
    sizes = [len(_FORMS) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
    heads = nn.Linear(eyes.width, sum(sizes))
    parameters = [*student.model.vision_tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    for step, drawn in enumerate(batches(samples(50, "train", "medium"), 64, steps)):
        logits = heads(seen(student, images, [picture for _, _, picture in drawn])).split(sizes, dim=-1)
        labels = patch_labels([scene for scene, _, _ in drawn], eyes.side)
        losses = [F.cross_entropy(logit.flatten(0, 1), labels[..., i].flatten()) for i, logit in enumerate(logits)]
        loss = sum(losses, start=torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"tower {step:5d}/{steps}  loss {loss.item():.3f}", flush=True)


def connect(
    student: LlavaForConditionalGeneration,
    images: SiglipImageProcessorPil,
    eyes: Eyes,
    embedded: nn.Module,
    words: PreTrainedTokenizerBase,
    steps: int,
) -> None:
    """Turn each visual token into the old words for what it shows, by least squares, with the encoder as it is."""
    ids = [torch.tensor(words.convert_tokens_to_ids(list(group))) for group in (_FORMS, COLOURS, SIZES)]
    patches = eyes.side // GRID
    places = [
        words.convert_tokens_to_ids([ROWS[i // patches], COLUMNS[j // patches]])
        for i in range(eyes.side)
        for j in range(eyes.side)
    ]
    projector = student.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for drawn in batches(samples(51, "train", "medium"), 32, steps):
        with torch.no_grad():
            labels = patch_labels([scene for scene, _, _ in drawn], eyes.side)
            wanted = embedded(torch.tensor(places)).sum(1).expand(len(labels), -1, -1)
            for index, group in enumerate(ids):
                shown = labels[..., index]
                wanted = wanted + (shown > 0).unsqueeze(-1) * embedded(group[(shown - 1).clamp(min=0)])
            features = seen(student, images, [picture for _, _, picture in drawn])
        loss = F.mse_loss(projector(features), wanted) / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"projector {steps}/{steps}  unexplained variance {loss.item():.3f}", flush=True)


@torch.no_grad()
def prune(student: LlavaForConditionalGeneration, share: float) -> None:
    """Set the smallest weights of the encoder to zero, as encoders are pruned for deployment."""
    for name, weight in student.model.vision_tower.named_parameters():
        if weight.ndim > 1 and "position" not in name:
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values] = 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the students; one that is there stays")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in STUDENTS:
        once(arguments.out / name, partial(write, name))
