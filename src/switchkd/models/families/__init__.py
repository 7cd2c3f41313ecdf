"""Model families: where the three parts of each Hugging Face VLM are. The only place that knows such names."""

from transformers import PretrainedConfig

from switchkd.models.families.family import Family, Features, Map
from switchkd.models.families.gemma import GEMMA3, PALIGEMMA
from switchkd.models.families.idefics3 import IDEFICS3, SMOLVLM
from switchkd.models.families.internvl import INTERNVL
from switchkd.models.families.llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
from switchkd.models.families.mistral3 import MISTRAL3
from switchkd.models.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

#: `model_type` of a checkpoint's config → family.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAVA,
        LLAVA_NEXT,
        LLAVA_ONEVISION,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        IDEFICS3,
        SMOLVLM,
        INTERNVL,
        PALIGEMMA,
        GEMMA3,
        MISTRAL3,
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model.

    Raises:
        ValueError: for a `model_type` that has no file here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type {config.model_type!r} is not supported yet (supported: {', '.join(sorted(FAMILIES))}). "
            f"To add it, write src/switchkd/models/families/{config.model_type.replace('-', '_')}.py after the example of internvl.py "
            "and add it to FAMILIES; docs/families.md shows how in a page"
        )
    return FAMILIES[config.model_type]


__all__ = ["FAMILIES", "Family", "Features", "Map", "family_of"]
