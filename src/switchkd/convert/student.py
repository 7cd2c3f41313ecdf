"""`switchkd init`: a student before training, put together from smaller public models, cut from its teacher, or both."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from switchkd.convert.checkpoint_files import complete_or_nothing
from switchkd.convert.cut import SECTIONS, check_features, cut
from switchkd.convert.processor import IMAGE_TOKEN, llava_processor, place_image_token
from switchkd.data.processor_files import save_processor
from switchkd.data.template_choice import choose_format, use_format
from switchkd.models import Pathway, load_pathway
from switchkd.models.families import family_of
from switchkd.models.fill import fill
from switchkd.models.opening import load_processor
from switchkd.models.refusals import refuse_other_forms, refuse_unreadable, refuse_without_vocabulary

#: `model_type` → the vision encoder alone.
TOWERS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}
_VISION, _PROJECTOR, _LANGUAGE, _HEAD = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.language_model.",
    "lm_head.",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """What a student is made of: each part is a model's of its own, or the teacher's, whole or with fewer layers."""

    teacher: str | None = None
    vision: str | None = None
    language: str | None = None
    vision_layers: int | None = None
    language_layers: int | None = None

    def __post_init__(self) -> None:
        for part in ("vision", "language"):
            own, layers = getattr(self, part), getattr(self, f"{part}_layers")
            if self.teacher is None and own is None:
                raise ValueError(
                    f"where should the {part} part come from? Give --{part} MODEL, or --from-teacher TEACHER"
                )
            if own is not None and layers is not None:
                raise ValueError(
                    f"--{part}-layers cuts the teacher's {part} part, and --{part} replaces it: give one of them"
                )
        if self.teacher is not None and not (
            self.vision or self.language or self.vision_layers or self.language_layers
        ):
            raise ValueError(
                "the student would be the teacher: give --vision-layers or --language-layers to cut it, or --vision or --language to "
                "replace a part"
            )


def init_student(start: Start, output: Path, *, seed: int = 0) -> None:
    """Write the student into the new directory `output`, with its processor: plain Hugging Face files.

    The projector is the teacher's where both parts are, else a new one, drawn with `seed` as `nn.Linear` draws it. All else is copied.

    Raises:
        ValueError: if the parts cannot be had or joined, by name.
    """
    if start.teacher is not None:
        refuse_unreadable(start.teacher)
    for part in filter(None, (start.vision, start.language)):
        refuse_other_forms(part)
    if start.language is not None:
        refuse_without_vocabulary(start.language)
    teacher = None if start.teacher is None else load_pathway(start.teacher)
    if start.teacher is not None and teacher is not None and not (start.vision or start.language):
        layers = {"vision": start.vision_layers, "language": start.language_layers}
        config, tensors = cut(teacher, {part: kept for part, kept in layers.items() if kept is not None})
        model = fill(type(teacher.model), config, tensors)
        model.generation_config = teacher.model.generation_config
        processor = load_processor(start.teacher)
    else:
        model, processor = _join(start, teacher, seed)
    with complete_or_nothing(output) as folder:
        model.save_pretrained(folder)
        save_processor(processor, folder)
        student = load_pathway(folder)  # complete, and of a supported family
        if teacher is not None and start.vision_layers is not None:
            check_features(teacher, student)


def _join(start: Start, teacher: Pathway | None, seed: int) -> tuple[PreTrainedModel, LlavaProcessor]:
    """A LLaVA of two parts and a new projector; what is not given is the teacher's."""
    if teacher is not None and teacher.model.config.model_type != "llava":
        raise ValueError(
            f"{start.teacher} is a {teacher.model.config.model_type}, and only a llava can be given other parts: cut it with "
            "--vision-layers and --language-layers instead"
        )
    vision, vision_tensors = _vision(start, teacher)
    text, text_tensors = _language(start, teacher)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_select_strategy="default" if vision.model_type == "clip_vision_model" else "full",
        tie_word_embeddings=text.tie_word_embeddings,
    )
    if teacher is not None:
        for name in (
            "vision_feature_layer",
            "vision_feature_select_strategy",
            "projector_hidden_act",
            "multimodal_projector_bias",
        ):
            setattr(config, name, getattr(teacher.model.config, name))
    family_of(config)  # refuses members that have not been tested
    processor = _processor(start, config)
    config.image_token_index = processor.image_token_id
    _grow(text_tensors, config, processor.image_token_id)
    tensors = {**vision_tensors, **text_tensors, **_new_projector(config, seed)}
    widest = torch.promote_types(*(next(iter(part.values())).dtype for part in (vision_tensors, text_tensors)))
    model = fill(LlavaForConditionalGeneration, config, {name: tensor.to(widest) for name, tensor in tensors.items()})
    _end_answers(model, processor)
    return model, processor


def _vision(start: Start, teacher: Pathway | None) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Config and tensors of the vision encoder."""
    if start.vision is None:
        return _part(start, teacher, "vision")
    kind = AutoConfig.from_pretrained(start.vision, trust_remote_code=False).model_type
    if kind not in TOWERS:
        raise ValueError(f"{start.vision} is a {kind}; a LLaVA's vision encoder can be a {', a '.join(sorted(TOWERS))}")
    tower = _load(TOWERS[kind], start.vision)
    return tower.config, {_VISION + name: tensor for name, tensor in tower.state_dict().items()}


def _language(start: Start, teacher: Pathway | None) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Config and tensors of the language model and its head."""
    if start.language is None:
        return _part(start, teacher, "language")
    model = _load(AutoModelForCausalLM, start.language)
    return model.config, {
        name if name.startswith(_HEAD) else _LANGUAGE + name.removeprefix("model."): tensor
        for name, tensor in model.state_dict().items()
    }


def _part(start: Start, teacher: Pathway | None, part: str) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """A part of the teacher, cut where that was asked for."""
    assert teacher is not None  # Start has checked it
    kept: int | None = getattr(start, f"{part}_layers")
    config, tensors = cut(teacher, {} if kept is None else {part: kept})
    prefixes = (_VISION,) if part == "vision" else (_LANGUAGE, _HEAD)
    return getattr(config, SECTIONS[part]), {
        name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)
    }


def _load(kind: Any, name: str) -> PreTrainedModel:
    model: PreTrainedModel
    model, info = kind.from_pretrained(
        name, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]})):
        raise ValueError(
            f"{name} lacks {len(missing)} tensors of a {model.config.model_type}, {missing[0]} first: they would be random"
        )
    return model


def _new_projector(config: LlavaConfig, seed: int) -> dict[str, Tensor]:
    vision: Any = config.vision_config
    text: Any = config.text_config
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    sizes = {
        "linear_1.": (vision.hidden_size * layers, text.hidden_size),
        "linear_2.": (text.hidden_size, text.hidden_size),
    }
    _log.info("the projector from %d to %d is new: train it first", *sizes["linear_1."])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = {
            name: nn.Linear(*size, bias=config.multimodal_projector_bias).state_dict() for name, size in sizes.items()
        }
    return {_PROJECTOR + name + key: tensor for name, tensors in drawn.items() for key, tensor in tensors.items()}


def _grow(tensors: dict[str, Tensor], config: LlavaConfig, image_token: int) -> None:
    """Add rows until the image token has one: the mean of the others, so that the head gives the new ones no unusual logit."""
    text: Any = config.text_config
    if image_token < text.vocab_size:
        return
    rows = -(-(image_token + 1) // 64) * 64  # a multiple that matrix units like
    _log.info("the embeddings have %d rows and the image token is %d: %d rows now", text.vocab_size, image_token, rows)
    for name, tensor in tensors.items():
        if tensor.shape[:1] == (text.vocab_size,) and name.endswith(("embed_tokens.weight", "lm_head.weight")):
            mean = tensor.float().mean(0).to(tensor.dtype)
            tensors[name] = torch.cat([tensor, mean.expand(rows - text.vocab_size, -1)])
    text.vocab_size = rows


def _processor(start: Start, config: LlavaConfig) -> LlavaProcessor:
    """The teacher's tokenizer, template and image processor where the student's parts read the same; else those of its parts."""
    teacher_processor: Any = None if start.teacher is None else load_processor(start.teacher)
    tokenizer = (
        None if start.language is None else AutoTokenizer.from_pretrained(start.language, trust_remote_code=False)
    )
    template = None
    if teacher_processor is not None and (
        tokenizer is None or _words(tokenizer) == _words(teacher_processor.tokenizer)
    ):
        tokenizer, template = teacher_processor.tokenizer, teacher_processor.chat_template
    assert tokenizer is not None  # Start has checked it
    place_image_token(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    processor = llava_processor(tokenizer, config, template)
    vision: Any = config.vision_config
    if teacher_processor is not None and processor.image_processor.size == teacher_processor.image_processor.size:
        processor.image_processor = teacher_processor.image_processor
    use_format(processor, choose_format(processor))
    _log.info("an image is %d pixels wide; the tokenizer has %d tokens", vision.image_size, len(tokenizer))
    return processor


def _words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {token: index for token, index in tokenizer.get_vocab().items() if token != IMAGE_TOKEN}


def _end_answers(model: PreTrainedModel, processor: LlavaProcessor) -> None:
    """Generation stops at the token that closes an answer in the chat template."""
    assert model.generation_config is not None
    model.generation_config.eos_token_id = choose_format(processor).closing_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
