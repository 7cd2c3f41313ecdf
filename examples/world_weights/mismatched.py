"""A student that shares nothing with the shipped teacher: `python -m examples.world_weights.mismatched --out DIR`.

It has another vision encoder (width 96 instead of 128, images of 60 pixels in patches of 20 instead of 48 in patches of 8, so 9 visual
tokens instead of 36) and another tokenizer (a BPE whose words begin with ▁). Its language model is the shipped student's, each new token
begun as the mean of the old ones of its text. Its encoder was trained on what the cells of the world's pictures hold and then pruned: it
sees badly and can learn again. So the switch goes over a bridge, each model reads its own pixels and tokens, and answers are aligned by
their text.
"""

import argparse
import itertools
from collections.abc import Sequence
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

from examples.world_weights.models import CHAT_TEMPLATE, IMAGE, UNKNOWN, student_config
from examples.world_weights.packing import batches, cell_labels
from switchkd.pretraining.small_llava import pieces
from switchkd.world.assets import student_path
from switchkd.world.scenes import COLOURS, COLUMNS, DIGITS, GRID, ROWS, SHAPES, SIZES
from switchkd.world.write import once, samples

WIDTH, IMAGE_SIZE, PATCH = 96, 60, 20
LAYERS = 4
TOKENIZER_WORDS = 290
#: Share of the encoder's weights that are set to 0 in the end.
PRUNED = 0.7
_FORMS = SHAPES + DIGITS


def write(folder: Path, tower_steps: int = 400, projector_steps: int = 1000) -> None:
    """The student and its processor; a minute or two on one core."""
    torch.manual_seed(0)
    old = LlavaForConditionalGeneration.from_pretrained(student_path())
    words = AutoTokenizer.from_pretrained(student_path())
    tokenizer = train_tokenizer()
    student = new_student(old, words, tokenizer)
    images = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )
    train_eyes(student, images, tower_steps)
    connect(student, images, old.model.language_model.embed_tokens, words, projector_steps)
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
    old: LlavaForConditionalGeneration, words: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """The old student's language model, told in the words of the new tokenizer, behind eyes that know nothing yet."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = student_config().text_config
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
            ids = spelled(tokenizer, index, words)
            new_words.weight[index] = old_words.weight[ids].mean(0)
            student.lm_head.weight[index] = old.lm_head.weight[ids].mean(0)
    return student


def spelled(tokenizer: PreTrainedTokenizerFast, index: int, words: PreTrainedTokenizerBase) -> list[int]:
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
) -> Float[Tensor, "pictures cells width"]:
    """What its eyes make of pictures: one token for each cell."""
    pixels = images(list(pictures), return_tensors="pt")["pixel_values"]
    features: Tensor = student.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return features


def train_eyes(student: LlavaForConditionalGeneration, images: SiglipImageProcessorPil, steps: int) -> None:
    """Train the encoder on what is in each cell, and where the cell is."""
    sizes = [len(_FORMS) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
    heads = nn.Linear(WIDTH, sum(sizes))
    parameters = [*student.model.vision_tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    for step, drawn in enumerate(batches(samples(50, "train", "medium"), 64, steps)):
        logits = heads(seen(student, images, [picture for _, _, picture in drawn])).split(sizes, dim=-1)
        labels = cell_labels([scene for scene, _, _ in drawn]).flatten(1, 2)
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
    embedded: nn.Module,
    words: PreTrainedTokenizerBase,
    steps: int,
) -> None:
    """Turn each visual token into the old words for what it shows, by least squares, with the encoder as it is."""
    ids = [torch.tensor(words.convert_tokens_to_ids(list(group))) for group in (_FORMS, COLOURS, SIZES)]
    places = [words.convert_tokens_to_ids([ROWS[i], COLUMNS[j]]) for i in range(GRID) for j in range(GRID)]
    projector = student.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for drawn in batches(samples(51, "train", "medium"), 32, steps):
        with torch.no_grad():
            labels = cell_labels([scene for scene, _, _ in drawn]).flatten(1, 2)
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
    parser.add_argument("--out", type=Path, required=True, help="directory for the student; one that is there stays")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    once(arguments.out, write)
