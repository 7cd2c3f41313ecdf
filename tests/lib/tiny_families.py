"""Tiny random models of every family, and inputs for them that need no processor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tiny_models import make_inputs, read_alike
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from switchkd.batch import Batch, Inputs

VOCABULARY = 96
IMAGE_TOKEN, VIDEO_TOKEN = 5, 4
#: (height, width) of the images of the samples of the standard batch: two images, one image, none.
SIZES = [[(16, 16), (16, 32)], [(32, 16)], []]
PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def siglip(**extra: Any) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    } | extra


def clip(**extra: Any) -> dict[str, Any]:
    return siglip(model_type="clip_vision_model", **extra)


def language(kind: str, hidden: int, depth: int, **extra: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": hidden // 2,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    } | extra


def mrope(hidden: int, depth: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [hidden // 4 - 2, 1, 1]}
    return language("", hidden, depth, rope_parameters=rope)


def llava(vision: dict, kind: str) -> Callable[..., PretrainedConfig]:
    strategy = "default" if vision["model_type"].startswith("clip") else "full"

    def config(hidden: int, depth: int) -> PretrainedConfig:
        return hf.LlavaConfig(
            vision_config=vision,
            text_config=language(kind, hidden, depth),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy=strategy,
        )

    return config


def llava_next(kind: str) -> Callable[..., PretrainedConfig]:
    def config(hidden: int, depth: int) -> PretrainedConfig:
        return hf.LlavaNextConfig(
            vision_config=clip(),
            text_config=language(kind, hidden, depth),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            image_grid_pinpoints=PINPOINTS,
        )

    return config


def llava_onevision(hidden: int, depth: int) -> PretrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=siglip(vision_use_head=False),
        text_config=language("qwen2", hidden, depth),
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",  # so that 32 x 32 images are interpolated
    )


def qwen_vision(**extra: Any) -> dict[str, Any]:
    shared = {"depth": 3, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
    return shared | {"initializer_range": 0.2} | extra


def qwen(name: str, **vision: Any) -> Callable[..., PretrainedConfig]:
    def config(hidden: int, depth: int) -> PretrainedConfig:
        projected = {"hidden_size": hidden} if name == "Qwen2VL" else {"out_hidden_size": hidden}
        text = mrope(hidden, depth)
        del text["model_type"]
        return getattr(hf, f"{name}Config")(
            vision_config=qwen_vision(**vision, **projected),
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_start_token_id=2,
            vision_end_token_id=3,
        )

    return config


def idefics3(name: str) -> Callable[..., PretrainedConfig]:
    def config(hidden: int, depth: int) -> PretrainedConfig:
        vision = siglip(patch_size=4)
        del vision["model_type"]
        return getattr(hf, f"{name}Config")(
            vision_config=vision,
            text_config=language("llama", hidden, depth),
            image_token_id=IMAGE_TOKEN,
            scale_factor=2,
            pad_token_id=0,
        )

    return config


def internvl(kind: str) -> Callable[..., PretrainedConfig]:
    def config(hidden: int, depth: int) -> PretrainedConfig:
        vision = siglip(model_type="internvl_vision", image_size=[16, 16], patch_size=[4, 4])
        return hf.InternVLConfig(
            vision_config=vision,
            text_config=language(kind, hidden, depth),
            image_token_id=IMAGE_TOKEN,
            image_seq_length=4,
        )

    return config


def paligemma(kind: str) -> Callable[..., PretrainedConfig]:
    def config(hidden: int, depth: int) -> PretrainedConfig:
        extra = (
            {"query_pre_attn_scalar": hidden // 2, "final_logit_softcapping": 2.0, "sliding_window": 8}
            if kind == "gemma2"
            else {}
        )
        return hf.PaliGemmaConfig(
            vision_config=siglip(vision_use_head=False, projection_dim=hidden),
            text_config=language(kind, hidden, depth, **extra),
            image_token_id=IMAGE_TOKEN,
            projection_dim=hidden,
            hidden_size=hidden,
        )

    return config


def gemma3(hidden: int, depth: int) -> PretrainedConfig:
    layers = ["sliding_attention", "full_attention"] * depth
    text = language(
        "gemma3_text",
        hidden,
        depth,
        layer_types=layers[:depth],
        final_logit_softcapping=2.0,
        sliding_window=8,
        query_pre_attn_scalar=hidden // 2,
    )
    return hf.Gemma3Config(
        vision_config=siglip(image_size=32, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=4,
        image_token_id=IMAGE_TOKEN,
        boi_token_index=2,
        eoi_token_index=3,
    )


def mistral3(hidden: int, depth: int) -> PretrainedConfig:
    vision = siglip(model_type="pixtral", image_size=32, patch_size=4, head_dim=8)
    return hf.Mistral3Config(
        vision_config=vision,
        text_config=language("mistral", hidden, depth),
        image_token_id=IMAGE_TOKEN,
        spatial_merge_size=2,
    )


@dataclass(frozen=True)
class Build:
    """A member of a family: its config by width and depth of the language model, and how it reads images."""

    config: Callable[..., PretrainedConfig]
    reads: Callable[[PretrainedConfig, list[list[tuple[int, int]]], torch.Generator], tuple[dict, list[list[int]]]]


Sizes = list[list[tuple[int, int]]]


def whole(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """Every image at the size that the model wants."""
    side = config.vision_config.image_size
    tokens = {"gemma3": 4}.get(
        config.model_type, (side // config.vision_config.patch_size) ** 2 if isinstance(side, int) else 1
    )
    return {"pixel_values": torch.randn(sum(map(len, sizes)), 3, side, side, generator=generator)}, [
        [tokens for _ in row] for row in sizes
    ]


def tiled(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """LLaVA-NeXT and OneVision: the whole image, then its tiles; the number of tokens is left to the model's own packing."""
    flat = [(size, len(row)) for row in sizes for size in row]
    counts, tiles = [], []
    for size, row_length in flat:
        rows, columns = get_anyres_image_grid_shape(size, PINPOINTS, 16)
        split = config.model_type == "llava_next" or row_length == 1
        tiles.append(1 + rows * columns if split else 1)
        height, width = 2 * rows, 2 * columns  # patches of 8 x 8 in tiles of 16 x 16
        if size == (16, 16):  # scaled to the height of its 16 x 32 canvas, in the middle of it
            height, width = 2, 2
        counts.append(4 + height * (width + 1) if split else 5)
    pixels = torch.zeros(len(flat), max(tiles, default=1), 3, 16, 16)
    for image, number in enumerate(tiles):
        pixels[image, :number] = torch.randn(number, 3, 16, 16, generator=generator)
    batch = {"pixel_values": pixels, "image_sizes": torch.tensor([list(size) for size, _ in flat]).view(-1, 2)}
    if config.model_type == "llava_onevision":
        batch["batch_num_images"] = torch.tensor([len(row) for row in sizes if row])
    left = iter(counts)
    return batch, [[next(left) for _ in row] for row in sizes]


def patches(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """Qwen: 4 x 4 pixels, two frames."""
    grids = torch.tensor([[1, height // 4, width // 4] for row in sizes for height, width in row]).view(-1, 3)
    pixels = torch.randn(int(grids.prod(-1).sum()), 3 * 2 * 4 * 4, generator=generator)
    return {"pixel_values": pixels, "image_grid_thw": grids}, [[h * w // 64 for h, w in row] for row in sizes]


def padded_tiles(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """Idefics3: a tile for each 16 x 16 pixels, and the whole image, if it is larger than one tile."""
    counts = [[1 if size == (16, 16) else 1 + size[0] * size[1] // 256 for size in row] for row in sizes]
    most = max(map(sum, counts))
    rows = [row for row in counts if row]
    pixels, mask = torch.zeros(len(rows), most, 3, 16, 16), torch.zeros(len(rows), most, 16, 16, dtype=torch.long)
    for row, of_row in enumerate(rows):
        pixels[row, : sum(of_row)] = torch.randn(sum(of_row), 3, 16, 16, generator=generator)
        mask[row, : sum(of_row)] = 1
    mask[0, 0, 8:] = 0  # the lower half of the first tile is padding
    pixels[0, 0, :, 8:] = 0
    return {"pixel_values": pixels, "pixel_attention_mask": mask}, [[4 * count for count in row] for row in counts]


def loose_tiles(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """InternVL: the tiles of all images in one row; four tokens for each."""
    counts = [[1 if size == (16, 16) else 1 + size[0] * size[1] // 256 for size in row] for row in sizes]
    pixels = torch.randn(sum(map(sum, counts)), 3, 16, 16, generator=generator)
    return {"pixel_values": pixels}, [[4 * count for count in row] for row in counts]


def any_size(config: PretrainedConfig, sizes: Sizes, generator: torch.Generator) -> tuple[dict, list[list[int]]]:
    """Mistral3: images padded to the largest, their own sizes beside."""
    flat = [size for row in sizes for size in row]
    pixels = torch.zeros(len(flat), 3, 32, 32)
    for image, (height, width) in enumerate(flat):
        pixels[image, :, :height, :width] = torch.randn(3, height, width, generator=generator)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([list(size) for size in flat])}, [
        [h * w // 64 for h, w in row] for row in sizes
    ]


BUILDS = {
    "llava-clip-llama": Build(llava(clip(), "llama"), whole),
    "llava-siglip-qwen2": Build(llava(siglip(), "qwen2"), whole),
    "llava_next-llama": Build(llava_next("llama"), tiled),
    "llava_next-mistral": Build(llava_next("mistral"), tiled),
    "llava_onevision": Build(llava_onevision, tiled),
    "qwen2_vl": Build(qwen("Qwen2VL", embed_dim=16, mlp_ratio=2), patches),
    "qwen2_5_vl": Build(
        qwen("Qwen2_5_VL", hidden_size=16, intermediate_size=24, window_size=16, fullatt_block_indexes=[1]), patches
    ),
    "qwen3_vl": Build(
        qwen(
            "Qwen3VL", hidden_size=16, intermediate_size=24, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
        ),
        patches,
    ),
    "idefics3": Build(idefics3("Idefics3"), padded_tiles),
    "smolvlm": Build(idefics3("SmolVLM"), padded_tiles),
    "internvl-qwen2": Build(internvl("qwen2"), loose_tiles),
    "internvl-qwen3": Build(internvl("qwen3"), loose_tiles),
    "paligemma": Build(paligemma("gemma"), whole),
    "paligemma2": Build(paligemma("gemma2"), whole),
    "gemma3": Build(gemma3, whole),
    "mistral3": Build(mistral3, any_size),
}


def tiny(name: str, *, hidden: int = 16, depth: int = 3, seed: int = 0) -> PreTrainedModel:
    """A model of the build `name` with random weights, none of which is zero; `hidden` and `depth` are the language model's."""
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(BUILDS[name].config(hidden, depth))
    with torch.no_grad():
        for parameter in model.parameters():  # also those that start at zero or one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def inputs_for(name: str, *, sizes: Sizes = SIZES, seed: int = 0) -> Inputs:
    """One sample for each entry of `sizes`, with images of that many pixels; two answers in every one."""
    generator = torch.Generator().manual_seed(seed)
    config = BUILDS[name].config(16, 1)
    images, tokens = BUILDS[name].reads(config, sizes, generator) if any(sizes) else ({}, [[] for _ in sizes])

    def words(n: int) -> list[int]:
        return torch.randint(8, VOCABULARY, (n,), generator=generator).tolist()

    samples = []
    for sample, counts in enumerate(tokens):
        ids = [i for count in counts for i in [IMAGE_TOKEN] * count + words(1)] + words(2)
        answers: list[int] = []
        for length in (3 + sample, 2):
            question, answer = words(3), words(length)
            ids += question + answer
            answers += range(len(ids) - length, len(ids))
        samples.append((ids, answers))
    inputs = make_inputs(samples, images)
    types = token_types(config.model_type, inputs, [answers[0] for _, answers in samples])
    return inputs._replace(types=types)


def token_types(model_type: str, inputs: Inputs, first_answers: list[int]) -> dict[str, torch.Tensor]:
    """What the processors of some families write, by hand."""
    is_image = (inputs.tokens == IMAGE_TOKEN).long()
    if model_type.startswith("qwen"):
        return {"mm_token_type_ids": is_image}
    if model_type == "gemma3":
        return {"token_type_ids": is_image}
    if model_type == "paligemma":  # all before the first answer sees all before the first answer
        columns = torch.arange(inputs.tokens.shape[1])
        return {"token_type_ids": ((columns >= torch.tensor(first_answers)[:, None]) & inputs.is_text()).long()}
    return {}


def batch_for(name: str, *, sizes: Sizes = SIZES, seed: int = 0) -> Batch:
    """`inputs_for`, read alike by student and teacher."""
    return read_alike(inputs_for(name, sizes=sizes, seed=seed))
