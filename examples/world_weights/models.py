"""The world's tiny models and their processor, all Hugging Face classes: SigLIP, MLP projector, Qwen2."""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from switchkd.world.draw import IMAGE_SIZE

PATCH = 8
VISUAL_TOKENS = (IMAGE_SIZE // PATCH) ** 2
#: Width of the visual features, the same in teacher and student, so that the switch fits without a bridge.
VISION_WIDTH = 128
#: Rows of the heads; the trained tokenizer fills nearly all of them.
VOCABULARY = 304
PAD, END, IMAGE, USER, ASSISTANT, SYSTEM, UNKNOWN = (
    "<|pad|>",
    "<|end|>",
    "<image>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|unknown|>",
)
SPECIAL = [PAD, END, IMAGE, USER, ASSISTANT, SYSTEM, UNKNOWN]

#: A turn is its role's token and its content; answers end with a token of their own, which is learned like the answer.
CHAT_TEMPLATE = """\
{%- macro content(message) -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
<|{{ message['role'] }}|>
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ content(message) }}<|end|>{%- endgeneration -%}
{%- else -%}{{ content(message) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def vision_config(layers: int, mlp: int) -> SiglipVisionConfig:
    """Give a SigLIP-style tower over the world's pictures, without the pooling head that LLaVA never calls."""
    return SiglipVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def _llava_config(vision: SiglipVisionConfig, width: int, layers: int, mlp: int) -> LlavaConfig:
    text = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        # 1/sqrt(width): the usual 0.02 suits wide models; at this size answers that need the image come much later
        initializer_range=width**-0.5,
        bos_token_id=None,
        eos_token_id=SPECIAL.index(END),
        pad_token_id=SPECIAL.index(PAD),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def teacher_vision_config() -> SiglipVisionConfig:
    """Give the configuration of the teacher's tower."""
    return vision_config(layers=4, mlp=384)


def teacher_config() -> LlavaConfig:
    """Give the teacher's configuration."""
    return _llava_config(teacher_vision_config(), width=96, layers=3, mlp=192)


def student_vision_config() -> SiglipVisionConfig:
    """Give the configuration of the student's tower: the teacher's, with half of the layers."""
    return vision_config(layers=2, mlp=384)


def connected_config() -> LlavaConfig:
    """Give the student with the teacher's whole tower: what its projector is trained in."""
    return _llava_config(teacher_vision_config(), width=64, layers=2, mlp=160)


def student_config() -> LlavaConfig:
    """Give the student's configuration: half of the teacher's weights."""
    return _llava_config(student_vision_config(), width=64, layers=2, mlp=160)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer in which the world's words are whole and other ASCII text falls into pieces."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    ascii_characters = [chr(code) for code in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=4 * VOCABULARY, special_tokens=SPECIAL, initial_alphabet=ascii_characters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE, USER, ASSISTANT, SYSTEM],
        padding_side="left",
        model_max_length=2048,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Join the tokenizer with a SigLIP image processor (the Pillow one: no torchvision) and the chat template."""
    images = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )
