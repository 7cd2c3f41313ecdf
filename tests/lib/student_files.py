"""Small public models as they are published: a CLIP or SigLIP with its text side, a causal language model with its tokenizer."""

import torch
from tinyllava_files import write_tokenizer
from transformers import (
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}


def write_vision(folder, kind="siglip", dtype=torch.float32, image_size=32, seed=5):
    """A whole CLIP or SigLIP, text side included, as they are published."""
    torch.manual_seed(seed)
    text = {**SMALL, "vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "siglip":
        vision = SiglipVisionConfig(**SMALL, image_size=image_size, patch_size=8)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision.to_dict()))
    else:
        vision = CLIPVisionConfig(**SMALL, image_size=image_size, patch_size=8)
        config = CLIPModel.config_class(text_config=CLIPTextConfig(**text).to_dict(), vision_config=vision.to_dict())
        model = CLIPModel(config)
    model.to(dtype).save_pretrained(folder)
    return model.vision_model.state_dict()


def write_language(folder, kind="qwen2", rows=328, dtype=torch.float32, tied=True):
    """A causal language model with a tokenizer of 317 tokens."""
    torch.manual_seed(6)
    config, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[kind]
    made = model(config(**SMALL, vocab_size=rows, num_key_value_heads=1, tie_word_embeddings=tied)).to(dtype)
    made.save_pretrained(folder)
    write_tokenizer(folder)
    return made.state_dict()
