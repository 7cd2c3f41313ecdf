"""Does a student that shares nothing with its teacher still gain? `python benchmarks/mismatch.py [--steps N] [--seeds 0 1 2]`.

On the procedural world, with the teacher that ships with the package. The student has another vision encoder (width 96 instead of 128,
images of 60 pixels in patches of 20 instead of 48 in patches of 8, so 9 visual tokens instead of 36) and another tokenizer (a BPE whose
words begin with ▁). Its language model is the shipped student's, each new token begun as the mean of the old ones of its text; its encoder
was trained on the world's patches and then pruned. So the switch goes over a bridge, each model reads its own pixels and tokens,
and answers are aligned by their text. SFT and Switch-KD start from the same weights and see the same data in the same order.

Leaves everything in --output, and the table in table.md.
"""

import argparse
import itertools
import shutil
import statistics
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from examples.world_weights.models import _SPECIAL, CHAT_TEMPLATE, END, IMAGE, PAD, UNKNOWN
from examples.world_weights.packing import batches
from switchkd import world
from switchkd.distillation import distill
from switchkd.evaluate import evaluate_model
from switchkd.methods import SFT, Method, SwitchKD
from switchkd.recipe.schema import Data, Evaluate, LearningRates, Pairing, Recipe, Student, Teacher, Train
from switchkd.results import Results
from switchkd.world.assets import student_path, teacher_path
from switchkd.world.scenes import COLOURS, COLUMNS, DIGITS, GRID, ROWS, SHAPES, SIZES, Scene
from switchkd.world.write import samples

WIDTH, IMAGE_SIZE, PATCH = 96, 60, 20
TOKENIZER_WORDS = 290
LAYERS = 4
PRUNED = 0.7
FORMS = SHAPES + DIGITS
ARMS: dict[str, Method] = {
    "SFT": SFT(),
    "Switch-KD": SwitchKD(),
    "align only": SwitchKD(switch=0),
    "switch only": SwitchKD(align=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/mismatch"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tower-steps", type=int, default=400, help="of the student's vision encoder")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["SFT", "Switch-KD"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    output = arguments.output
    if not (output / "student").exists():
        write_student(output / "making", arguments.tower_steps)
        (output / "making").rename(output / "student")
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        data = output / f"data-{seed}"
        if not data.exists():
            writing = output / f"writing-{seed}"
            world.write(writing, train=1500, validation=0, test=60, seed=seed)
            writing.rename(data)
        for name in arguments.arms:
            method = ARMS[name]
            folder = output / f"{name.lower().replace(' ', '-')}-{seed}"
            if not (folder / "results.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                distill(recipe(output / "student", data, folder, method, arguments.steps, seed))
            rows.setdefault(name, []).append(accuracies(folder / "results.json"))
        for name, path in {"student at the start": output / "student", "teacher": Path(teacher_path())}.items():
            file = output / f"{name.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                evaluate_model(path, data / "test.json", output=file)
            rows.setdefault(name, []).append(accuracies(file))
        report(rows, output)


def recipe(student: Path, data: Path, output: Path, method: Method, steps: int, seed: int) -> Recipe:
    """One arm."""
    return Recipe(
        teacher=Teacher(str(teacher_path())),
        student=Student(str(student)),
        method=method,
        data=Data(str(data / "train.json"), max_length=512),
        train=Train(
            str(output),
            max_steps=steps,
            learning_rate=1e-3,
            learning_rates=LearningRates(vision=3e-4),
            save_steps=steps,
            save_total_limit=1,
            seed=seed,
            logging_steps=20,
        ),
        evaluate=Evaluate(str(data / "test.json"), batch_size=64, max_new_tokens=32),
        pair=Pairing(min_aligned=0.5),
    )


# ---- the student


def write_student(folder: Path, tower_steps: int) -> None:
    """The shipped student's language model with another tokenizer, behind eyes that know shapes and colours."""
    torch.manual_seed(0)
    old = LlavaForConditionalGeneration.from_pretrained(student_path())
    words = AutoTokenizer.from_pretrained(student_path())
    tokenizer = train_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, image_size=IMAGE_SIZE,
        patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    text = old.config.text_config.to_dict() | {
        "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip
    student = LlavaForConditionalGeneration(config)
    learned = {n: p for n, p in old.model.language_model.state_dict().items() if "embed_tokens" not in n}
    student.model.language_model.load_state_dict(learned, strict=False)
    with torch.no_grad():  # every new token begins as the mean of the old ones that its text had
        for index in range(len(tokenizer)):
            ids = spelled(tokenizer, index, words)
            student.model.language_model.embed_tokens.weight[index] = old.model.language_model.embed_tokens.weight[
                ids
            ].mean(0)
            student.lm_head.weight[index] = old.lm_head.weight[ids].mean(0)
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="full", chat_template=CHAT_TEMPLATE,
        image_token=IMAGE, num_additional_image_tokens=0,
    )  # fmt: skip
    train_eyes(student, processor, tower_steps)
    connect(student, processor, old.model.language_model.embed_tokens, words)
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
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_WORDS, special_tokens=[UNKNOWN, *reversed([s for s in _SPECIAL if s != UNKNOWN])],
        initial_alphabet=[chr(code) for code in range(33, 127)], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD, eos_token=END, padding_side="left",
        additional_special_tokens=[s for s in _SPECIAL if s not in (UNKNOWN, PAD, END)], model_max_length=2048,
    )  # fmt: skip


def spelled(tokenizer: PreTrainedTokenizerFast, index: int, words: PreTrainedTokenizerFast) -> list[int]:
    """The old tokenizer's ids for the text of a new token."""
    text = tokenizer.convert_ids_to_tokens(index)
    inside = not text.startswith("▁")
    whole = f"##{text}"
    if inside and whole in words.get_vocab():
        return [words.convert_tokens_to_ids(whole)]
    return words(text.replace("▁", " "), add_special_tokens=False).input_ids or [words.unk_token_id]


def cells(scenes: list[Scene]) -> torch.Tensor:
    """Form, colour and size of what is in each cell, from 1, 0 for nothing; its row and column: [scenes, 9, 5]."""
    labels = torch.zeros(len(scenes), GRID, GRID, 5, dtype=torch.long)
    labels[..., 3] = torch.arange(GRID)[:, None]
    labels[..., 4] = torch.arange(GRID)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            found = (FORMS.index(thing.form), COLOURS.index(thing.colour), SIZES.index(thing.size))
            labels[index, thing.row, thing.column, :3] = torch.tensor(found) + 1
    return labels.flatten(1, 2)


def seen(student: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: list[np.ndarray]) -> torch.Tensor:
    pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return student.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]


def train_eyes(student: LlavaForConditionalGeneration, processor: LlavaProcessor, steps: int) -> None:
    """Pre-train the tower on what is in each cell, and where the cell is."""
    sizes = [len(FORMS) + 1, len(COLOURS) + 1, len(SIZES) + 1, GRID, GRID]
    heads = nn.Linear(WIDTH, sum(sizes))
    parameters = [*student.model.vision_tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    for step, drawn in enumerate(batches(samples(50, "train", "medium"), 64, steps)):
        logits = heads(seen(student, processor, [picture for _, _, picture in drawn])).split(sizes, dim=-1)
        labels = cells([scene for scene, _, _ in drawn])
        loss = sum(F.cross_entropy(z.flatten(0, 1), labels[..., i].flatten()) for i, z in enumerate(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"tower {step}/{steps} loss {loss.item():.3f}", flush=True)


def connect(
    student: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    embedded: nn.Embedding,
    words: PreTrainedTokenizerFast,
) -> None:
    """Turn each visual token into the words for what it shows, by least squares, with the tower as it is."""
    ids = [torch.tensor(words.convert_tokens_to_ids(list(group))) for group in (FORMS, COLOURS, SIZES)]
    places = [words.convert_tokens_to_ids([ROWS[i], COLUMNS[j]]) for i in range(GRID) for j in range(GRID)]
    projector = student.model.multi_modal_projector
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3)
    steps = 1000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for drawn in batches(samples(51, "train", "medium"), 32, steps):
        with torch.no_grad():
            labels = cells([scene for scene, _, _ in drawn])
            wanted = embedded(torch.tensor(places)).sum(1).expand(len(labels), -1, -1)
            for index, group in enumerate(ids):
                shown = labels[..., index]
                wanted = wanted + (shown > 0).unsqueeze(-1) * embedded(group[(shown - 1).clamp(min=0)])
            features = seen(student, processor, [picture for _, _, picture in drawn])
        loss = F.mse_loss(projector(features), wanted) / wanted.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"projector: unexplained variance {loss.item():.3f}", flush=True)


@torch.no_grad()
def prune(student: LlavaForConditionalGeneration, share: float) -> None:
    """Set the smallest weights of the tower to zero, as encoders are pruned for deployment: it sees worse, and can learn again."""
    for name, weight in student.model.vision_tower.named_parameters():
        if weight.ndim > 1 and "position" not in name:
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values] = 0


# ---- the table


def accuracies(results: Path) -> dict[str, float]:
    """Percent right, by kind and in the mean of the kinds."""
    percentages = Results.load(results).percentages()
    return {kind: value for kind, value in percentages.items() if kind != "all questions"}


def report(rows: dict[str, list[dict[str, float]]], output: Path) -> None:
    """A table of means over the seeds, and the mean of kinds of every seed."""
    names = [
        "teacher",
        "student at the start",
        *(name for name in rows if name not in ("teacher", "student at the start")),
    ]
    lines = [f"| kind | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    for kind in rows["teacher"][0]:
        lines.append(
            f"| {kind} | {' | '.join(f'{statistics.mean(r[kind] for r in rows[name]):.1f}' for name in names)} |"
        )
    for seed in range(len(rows["teacher"])):
        each = (f"{rows[name][seed]['mean of kinds']:.1f}" for name in names)
        lines.append(f"| mean of kinds, run {seed} | {' | '.join(each)} |")
    table = "\n".join(lines) + "\n"
    (output / "table.md").write_text(table)
    print(table, flush=True)


if __name__ == "__main__":
    main()
