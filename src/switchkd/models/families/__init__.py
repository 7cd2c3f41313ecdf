"""Model families: where the three parts of each Hugging Face VLM are. The only place that knows such names."""

from transformers import PretrainedConfig

from switchkd.models.families.base import Family
from switchkd.models.families.llava import LLAVA

#: `model_type` of a checkpoint's config → family.
FAMILIES: dict[str, Family] = {LLAVA.model_type: LLAVA}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model.

    Raises:
        ValueError: for a `model_type` that has no file here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type {config.model_type!r} is not supported yet (supported: {', '.join(sorted(FAMILIES))}). "
            f"To add it, write src/switchkd/models/families/{config.model_type.replace('-', '_')}.py after the example of llava.py "
            "and add it to FAMILIES"
        )
    return FAMILIES[config.model_type]


__all__ = ["FAMILIES", "Family", "family_of"]
