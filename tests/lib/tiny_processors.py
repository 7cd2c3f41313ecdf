"""Tiny but genuine processors of every family, built without downloads and without torchvision, and models that fit them."""

import importlib
import sys
from typing import Any
from unittest.mock import patch

import transformers as hf
from tiny import tiny_tokenizer
from tiny_families import BUILDS
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.pixtral import image_processing_pil_pixtral

from switchkd.data.template_choice import choose_format

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
PINPOINTS = [[16, 32], [32, 16], [32, 32]]


def tokenizer(special: list[str] = (), *, bos: str | None = None, eos: str = "<|im_end|>", **named: str) -> Any:
    """The tiny tokenizer with more special tokens; `named` ones become attributes, as in the families' own tokenizers."""
    made = tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [*special, *named.values()], "eos_token": eos})
    if bos:
        made.add_special_tokens({"bos_token": bos})
    made._set_model_specific_special_tokens(named)
    return made


def without_torchvision(kind: type, *parts: Any, **options: Any) -> ProcessorMixin:
    """Processors of videos look up the class of their video processor, even if they get none; it needs torchvision."""
    with patch.object(kind, "check_argument_for_proper_class", lambda self, name, argument: type(argument)):
        return kind(*parts, **options)


def llava() -> ProcessorMixin:
    images = hf.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    return hf.LlavaProcessor(images, tokenizer(), patch_size=8, vision_feature_select_strategy="full")


def llava_next() -> ProcessorMixin:
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
    )
    return hf.LlavaNextProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def llava_onevision() -> ProcessorMixin:
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS)
    return without_torchvision(
        hf.LlavaOnevisionProcessor,
        images,
        tokenizer(["<video>"]),
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )


def qwen(kind: type) -> ProcessorMixin:
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, min_pixels=64, max_pixels=1024
    )
    names = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    return without_torchvision(kind, images, tokenizer(names), None)


def idefics3() -> ProcessorMixin:
    images = hf.Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    own = tokenizer(["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *TILES], bos="<|im_start|>")
    return hf.Idefics3Processor(images, own, image_seq_len=4)


def smolvlm() -> ProcessorMixin:
    images = hf.SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    own = tokenizer(["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *TILES], bos="<|im_start|>")
    module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    with patch.object(module, "num2words", str):  # a package that only videos need
        return without_torchvision(hf.SmolVLMProcessor, images, own, None, image_seq_len=4)


def internvl() -> ProcessorMixin:
    images = hf.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=1, max_patches=4)
    own = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    return without_torchvision(hf.InternVLProcessor, images, own, None, image_seq_length=4)


def paligemma() -> ProcessorMixin:
    images = hf.SiglipImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=4)
    return hf.PaliGemmaProcessor(images, tokenizer(bos="<bos>", eos="<eos>"))


def gemma3() -> ProcessorMixin:
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    own = tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        bos="<bos>",
        boi_token="<start_of_image>",
        image_token="<image_soft_token>",
        eoi_token="<end_of_image>",
    )
    return hf.Gemma3Processor(images, own, image_seq_length=4)


def mistral3() -> ProcessorMixin:
    """Its module imports a helper from a module that needs torchvision; the same helper is in the one that does not."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    with patch.dict(sys.modules, {name: image_processing_pil_pixtral}):
        kind = importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    special = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    return kind(images, tokenizer(special, bos="<s>", eos="</s>"), patch_size=4, spatial_merge_size=2)


#: Build → its processor.
PROCESSORS = {
    "llava-siglip-qwen2": llava,
    "llava_next-llama": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": lambda: qwen(hf.Qwen2VLProcessor),
    "qwen2_5_vl": lambda: qwen(hf.Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: qwen(hf.Qwen3VLProcessor),
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl-qwen2": internvl,
    "paligemma": paligemma,
    "paligemma2": paligemma,
    "gemma3": gemma3,
    "mistral3": mistral3,
}


def tiny_for(
    name: str, processor: ProcessorMixin, *, hidden: int = 16, depth: int = 3, seed: int = 0
) -> PreTrainedModel:
    """A model of the build `name` whose vocabulary is that of `processor`."""
    import torch

    config = BUILDS[name].config(hidden, depth)
    config.text_config.vocab_size = len(processor.tokenizer)
    chosen = choose_format(processor)
    config.image_token_id = chosen.image_token_id
    if chosen.video_token_id is not None:
        config.video_token_id = chosen.video_token_id
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval()
