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

from switchkd.types import IGNORE_INDEX, Batch

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


def tiny_batch(
    *, padding_side: str = "right", images: tuple[int, ...] = (1, 2, 0), seed: int = 0, image_size: int = 16
) -> Batch:
    """One row for each entry of `images`, with that many images; two answers in every row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (image_size // 8) ** 2

    def words(n: int) -> list[int]:
        return torch.randint(6, VOCABULARY, (n,), generator=generator).tolist()

    rows = []
    for row, count in enumerate(images):
        ids = words(2) + ([IMAGE_TOKEN] * tokens + words(1)) * count
        labels = [IGNORE_INDEX] * len(ids)
        for length in (3 + row, 2):
            question, answer = words(3), words(length)
            ids += question + answer
            labels += [IGNORE_INDEX] * len(question) + answer
        rows.append((ids, labels))
    longest = max(len(ids) for ids, _ in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (longest - len(values))
        return values + padding if padding_side == "right" else padding + values

    batch = Batch(
        input_ids=torch.tensor([pad(ids, 0) for ids, _ in rows]),
        attention_mask=torch.tensor([pad([1] * len(ids), 0) for ids, _ in rows]),
        labels=torch.tensor([pad(labels, IGNORE_INDEX) for _, labels in rows]),
    )
    if sum(images):
        batch["pixel_values"] = torch.randn(sum(images), 3, image_size, image_size, generator=generator)
    return batch
