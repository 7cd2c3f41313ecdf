"""Model families: where the three parts of each Hugging Face VLM are. The only place that knows such names."""

from transformers import PretrainedConfig, ProcessorMixin

from switchkd.models.families.family import LABELS, Family, FeatureGrid, Features, Geometry
from switchkd.models.families.gemma import Gemma3, PaliGemma
from switchkd.models.families.idefics3 import Idefics3, SmolVLM
from switchkd.models.families.internvl import InternVL
from switchkd.models.families.llava import Llava, LlavaNext, LlavaOneVision
from switchkd.models.families.mistral3 import Mistral3
from switchkd.models.families.qwen_vl import Qwen2VL, Qwen3VL, Qwen25VL

#: `model_type` of a checkpoint's config → family.
FAMILIES: dict[str, type[Family]] = {
    family.model_type: family
    for family in (
        Llava,
        LlavaNext,
        LlavaOneVision,
        Qwen2VL,
        Qwen25VL,
        Qwen3VL,
        Idefics3,
        SmolVLM,
        InternVL,
        PaliGemma,
        Gemma3,
        Mistral3,
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model, bound to its config.

    Raises:
        ValueError: for a `model_type` that has no file here, or a vision encoder or language model that has not been tested.
    """
    require_family(config.model_type)
    return FAMILIES[config.model_type](config)


def require_family(model_type: str) -> None:
    """Raise ValueError, with what to write, for a `model_type` that has no file here."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported yet (supported: {', '.join(sorted(FAMILIES))}). "
            f"To add it, write src/switchkd/models/families/{model_type.replace('-', '_')}.py after the example of internvl.py "
            "and add it to FAMILIES; docs/families.md shows how in a page"
        )


def family_of_processor(processor: ProcessorMixin) -> type[Family] | None:
    """The family that a processor serves, by the name of its class; None for one that no family names."""
    name = type(processor).__name__
    return next((family for family in FAMILIES.values() if name in family.processors), None)


__all__ = [
    "FAMILIES",
    "LABELS",
    "Family",
    "FeatureGrid",
    "Features",
    "Geometry",
    "family_of",
    "family_of_processor",
    "require_family",
]
