"""Tiny random members of every family the project supports, and batches for them."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from switchkd.batch import TEACHER, Aligned, Batch, Inputs, Media

VOCABULARY = 96
IMAGE_TOKEN = 5
BUILDS = [(vision, language) for vision in ("clip", "siglip") for language in ("llama", "qwen2")]


def tiny_llava(
    vision: str = "siglip",
    language: str = "qwen2",
    *,
    width: int = 32,
    hidden: int = 24,
    depth: int = 2,
    vocabulary: int = VOCABULARY,
    image_size: int = 16,
    tied: bool = False,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """A LLaVA with random weights of a size that makes logits differ visibly; `width` is V's, `hidden` L's."""
    vision_class = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[vision]
    language_class: type[PretrainedConfig] = {"llama": LlamaConfig, "qwen2": Qwen2Config}[language]
    config = LlavaConfig(
        vision_config=vision_class(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=8,
        ),
        text_config=language_class(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=depth,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=vocabulary,
            initializer_range=0.3,
        ),
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=tied,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, which start at zero
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def make_inputs(samples: list[tuple[list[int], list[int]]], images: Media | None = None, types=None) -> Inputs:
    """Samples as (tokens, places of the answer tokens), padded on the right with 0."""
    width = max(len(tokens) for tokens, _ in samples)
    places = [(number, column) for number, (_, answers) in enumerate(samples) for column in answers]
    return Inputs(
        tokens=torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in samples]),
        lengths=torch.tensor([len(tokens) for tokens, _ in samples]),
        predicts=torch.tensor([number * width + column - 1 for number, column in places], dtype=torch.long),
        targets=torch.tensor([samples[number][0][column] for number, column in places], dtype=torch.long),
        sample=torch.tensor([number for number, _ in places], dtype=torch.long),
        media={"image": images} if images else {},
        types=types or {},
    )


def read_alike(inputs: Inputs) -> Batch:
    """A batch that student and teacher read alike."""
    keys = tuple(f"sample-{number}@0" for number in range(len(inputs.lengths)))
    return Batch(keys, inputs, {TEACHER: inputs}, {TEACHER: Aligned(None, None, inputs.targets)})


def read_apart(
    student: Inputs, teacher: Inputs, places: list[tuple[int, int]], columns: list[int] | None = None
) -> Batch:
    """A batch that both read in their own way; `places` are the answers that are compared, of student and teacher."""
    first, second = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.contiguous()
    targets = student.targets[first] if columns is None else torch.tensor(columns)
    aligned = Aligned(None if len(first) == len(student.targets) else first, second, targets)
    return read_alike(student)._replace(readers={TEACHER: teacher}, shared={TEACHER: aligned})


def tiny_inputs(*, images: tuple[int, ...] = (1, 2, 0), seed: int = 0, image_size: int = 16) -> Inputs:
    """One sample for each entry of `images`, with that many images; two answers in every one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (image_size // 8) ** 2

    def words(n: int) -> list[int]:
        return torch.randint(6, VOCABULARY, (n,), generator=generator).tolist()

    samples = []
    for sample, count in enumerate(images):
        ids = words(2) + ([IMAGE_TOKEN] * tokens + words(1)) * count
        answers: list[int] = []
        for length in (3 + sample, 2):
            ids += words(3)
            answers += range(len(ids), len(ids) + length)
            ids += words(length)
        samples.append((ids, answers))
    pictures = {"pixel_values": torch.randn(sum(images), 3, image_size, image_size, generator=generator)}
    return make_inputs(samples, pictures if sum(images) else None)


def tiny_batch(**sizes) -> Batch:
    """`tiny_inputs`, read alike by student and teacher."""
    return read_alike(tiny_inputs(**sizes))


def plain_logits(model, inputs: Inputs):
    """What the model's own forward says at the positions that predict answers."""
    images = inputs.media.get("image", {})
    mask = inputs.is_text().long()
    logits = model(input_ids=inputs.tokens, attention_mask=mask, **images, **inputs.types).logits
    return logits.flatten(0, 1)[inputs.predicts]
