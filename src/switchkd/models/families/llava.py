"""LLaVA 1.5 and its kin, TinyLLaVA among them: CLIP or SigLIP vision, an MLP projector, Llama or Qwen2 language."""

from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from switchkd.models.families.base import Family, Features
from switchkd.types import Batch

VISION = ("clip_vision_model", "siglip_vision_model")
LANGUAGE = ("llama", "qwen2")


class Llava(Family):
    """`LlavaForConditionalGeneration`: V is the tower up to `vision_feature_layer`, P the two-layer MLP behind it."""

    model_type: ClassVar[str] = "llava"
    parts: ClassVar[dict[str, tuple[str, ...]]] = {
        "vision": ("model.vision_tower",),
        "projector": ("model.multi_modal_projector",),
        "language": ("model.language_model", "lm_head"),
    }
    summary: ClassVar[str] = "LlavaForConditionalGeneration · vision CLIP, SigLIP · language Llama, Qwen2"

    def check(self, config: PretrainedConfig) -> None:
        """Refuse towers and language models that the test suite does not cover."""
        for part, known, found in (
            ("vision encoder", VISION, config.vision_config.model_type),
            ("language model", LANGUAGE, config.text_config.model_type),
        ):
            if found not in known:
                raise ValueError(f"llava with {part} {found!r} has not been tested; supported: {', '.join(known)}")

    def see(self, model: PreTrainedModel, batch: Batch) -> Features:
        """The tower's hidden states at `vision_feature_layer`, without the first token where the strategy is `default`."""
        config = model.config
        pixels = batch["pixel_values"].to(model.model.vision_tower.dtype)
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = _feature_layers(config)
        features = torch.cat([states[layer] for layer in layers], dim=-1)
        return features[:, 1:] if config.vision_feature_select_strategy == "default" else features

    def project(self, model: PreTrainedModel, features: Features) -> BaseModelOutputWithPooling:
        """P(V(x)): one [tokens, hidden] tensor for each image."""
        projector = model.model.multi_modal_projector
        projected = projector(features.to(projector.linear_1.weight.dtype))
        # a list, one entry per image, as `get_image_features` returns it
        return BaseModelOutputWithPooling(pooler_output=cast(Any, list(projected)))

    def blind_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Layers above the feature layer, the final norm and SigLIP's pooling head: the features are taken before them."""
        tower = model.model.vision_tower
        depth = len(tower.encoder.layers)
        used = max(layer % (depth + 1) for layer in _feature_layers(model.config))
        above = [*tower.encoder.layers[used:], tower.post_layernorm]
        if model.config.vision_config.model_type == "siglip_vision_model" and tower.use_head:
            above.append(tower.head)
        return [parameter for module in above for parameter in module.parameters()]

    def geometry(self, config: PretrainedConfig) -> dict[str, int]:
        """Sizes that teacher and student must share."""
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2
        tokens += vision.model_type == "clip_vision_model"  # the class token
        tokens -= config.vision_feature_select_strategy == "default"
        return {
            "feature width": vision.hidden_size * len(_feature_layers(config)),
            "visual tokens per image": tokens,
            "image size in pixels": vision.image_size,
            "vocabulary rows": config.text_config.vocab_size,
            "image token id": config.image_token_id,
        }


def _feature_layers(config: PretrainedConfig) -> list[int]:
    layer = config.vision_feature_layer
    return [layer] if isinstance(layer, int) else list(layer)


LLAVA = Llava()
