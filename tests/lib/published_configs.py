"""Configs in the sizes of public models, as their config.json on the Hugging Face hub has them; what is a class's default is left out."""

from collections.abc import Callable

import transformers as hf
from transformers import PretrainedConfig


def qwen2(hidden: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, *, tied: bool) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
    }


def qwen2_5_vl(*sizes: int, tied: bool, vision_inner: int = 3420) -> PretrainedConfig:
    """Qwen/Qwen2.5-VL-*-Instruct."""
    text = qwen2(*sizes, tied=tied) | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": vision_inner, "num_heads": 16}
    vision |= {"out_hidden_size": sizes[0]}
    return hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656, tie_word_embeddings=tied
    )


def qwen3_vl(*sizes: int) -> PretrainedConfig:
    """Qwen/Qwen3-VL-*-Instruct."""
    text = qwen2(*sizes, 151936, tied=True) | {"head_dim": 128, "max_position_embeddings": 262144}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": sizes[0]}
    vision |= {"deepstack_visual_indexes": [5, 11, 17]}
    return hf.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656, tie_word_embeddings=True
    )


def smolvlm2(*sizes: int, large: bool = False) -> PretrainedConfig:
    """HuggingFaceTB/SmolVLM2-*-Instruct."""
    text = {"model_type": "llama", **qwen2(*sizes, 49280, tied=False), "max_position_embeddings": 8192, "head_dim": 64}
    base = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    base |= {"image_size": 512, "patch_size": 16}
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    so400m |= {"image_size": 384, "patch_size": 14}
    return hf.SmolVLMConfig(
        text_config=text,
        vision_config=so400m if large else base,
        scale_factor=3 if large else 4,
        image_token_id=49190,
        tie_word_embeddings=False,
    )


def internvl3(*sizes: int) -> PretrainedConfig:
    """OpenGVLab/InternVL3-*-hf."""
    text = {"model_type": "qwen2", **qwen2(*sizes, 151674, tied=False)}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": [448, 448], "patch_size": [14, 14]}
    return hf.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=151667, image_seq_length=256, tie_word_embeddings=False
    )


def siglip_so400m(**sizes: int) -> dict:
    """google/siglip-so400m-patch14-384."""
    vision = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304}
    vision |= {"num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
    return vision | {"vision_use_head": False} | sizes


def onevision(*sizes: int, tied: bool) -> PretrainedConfig:
    """llava-hf/llava-onevision-qwen2-*-ov-hf, whose encoder has lost its last layer."""
    return hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **qwen2(*sizes, tied=tied)},
        vision_config=siglip_so400m(num_hidden_layers=26),
        image_token_id=151646,
        video_token_id=151647,
        tie_word_embeddings=tied,
    )


def tinyllava(*sizes: int) -> PretrainedConfig:
    """TinyLLaVA Factory's SigLIP with Qwen2.5, in the form of LLaVA."""
    return hf.LlavaConfig(
        text_config={"model_type": "qwen2", **qwen2(*sizes, 151936, tied=True)},
        vision_config=siglip_so400m(),
        image_token_id=151665,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=True,
    )


def gemma3(hidden: int, inner: int, layers: int, heads: int, kv: int) -> PretrainedConfig:
    """google/gemma-3-*-it."""
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "sliding_window": 1024}
    text |= {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 256, "vocab_size": 262208}
    return hf.Gemma3Config(
        text_config=text, vision_config=siglip_so400m(image_size=896), image_token_id=262144, mm_tokens_per_image=256
    )


#: Name on the hub, or in recipes → how to make its config, and its number of parameters in billions as its page says.
PUBLISHED: dict[str, tuple[Callable[[], PretrainedConfig], float | None]] = {
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        lambda: qwen2_5_vl(8192, 29568, 80, 64, 8, 152064, tied=False, vision_inner=3456),
        73.4,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (lambda: qwen2_5_vl(3584, 18944, 28, 28, 4, 152064, tied=False), 8.29),
    "Qwen/Qwen2.5-VL-3B-Instruct": (lambda: qwen2_5_vl(2048, 11008, 36, 16, 2, 151936, tied=True), 3.75),
    "Qwen/Qwen3-VL-4B-Instruct": (lambda: qwen3_vl(2560, 9728, 36, 32, 8), 4.44),
    "Qwen/Qwen3-VL-2B-Instruct": (lambda: qwen3_vl(2048, 6144, 28, 16, 8), 2.13),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": (lambda: smolvlm2(2048, 8192, 24, 32, 32, large=True), 2.25),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": (lambda: smolvlm2(960, 2560, 32, 15, 5), 0.507),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": (lambda: smolvlm2(576, 1536, 30, 9, 3), 0.256),
    "OpenGVLab/InternVL3-8B-hf": (lambda: internvl3(3584, 18944, 28, 28, 4), 7.94),
    "OpenGVLab/InternVL3-1B-hf": (lambda: internvl3(896, 4864, 24, 14, 2), 0.938),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (lambda: onevision(3584, 18944, 28, 28, 4, 152128, tied=False), 8.03),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (lambda: onevision(896, 4864, 24, 14, 2, 152000, tied=True), 0.894),
    "google/gemma-3-12b-it": (lambda: gemma3(3840, 15360, 48, 16, 8), 12.2),
    "google/gemma-3-4b-it": (lambda: gemma3(2560, 10240, 34, 8, 4), 4.30),
    "checkpoints/tinyllava-3b": (lambda: tinyllava(2048, 11008, 36, 16, 2), None),
    "checkpoints/tinyllava-0.5b-init": (lambda: tinyllava(896, 4864, 24, 14, 2), None),
}
