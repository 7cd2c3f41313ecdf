"""A small LLaVA around the language model of one that ships with switchkd: its tokenizer, processor and weights at the start."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from switchkd.pretraining.scales import TowerPlan
from switchkd.pretraining.tower import tower_config
from switchkd.world.scenes import DIGITS, SHAPES

PAD, END, IMAGE, UNKNOWN = "<|pad|>", "<|end|>", "<image>", "<|unknown|>"
_ROLES = ["<|user|>", "<|assistant|>", "<|system|>"]
_SPECIAL = [PAD, END, IMAGE, *_ROLES, UNKNOWN]
_ASCII = [chr(code) for code in range(33, 127)]


def whole_words(texts: Iterable[str], classes: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer in which the words of the texts are whole and others fall into characters; the same for the same texts.

    Its words are listed, not trained: the trainer breaks ties by the order of a hash table, which is another in every process. Digits and
    punctuation stand alone, and are written with spaces: what that would change in `classes`, as in n01440764, is a token of its own.

    Raises:
        ValueError: a class cannot be written as it is.
    """
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    characters = sorted({character for word in words for character in word} | set(_ASCII))
    inside = [f"##{character}" for character in characters]
    entries = dict.fromkeys([*_SPECIAL, *characters, *inside, *sorted(words)])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    changed = {word for name in _changed(tokenizer, classes) for word in name.split()}
    odd = [word for word in sorted(changed) if not word.isalpha()]
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in odd])
    if left := _changed(tokenizer, classes):
        raise ValueError(
            f"answers cannot name the class {left[0]!r} as it is: punctuation in it is taken for the sentence's; rename it"
        )
    return _ready(tokenizer)


def _changed(tokenizer: Tokenizer, classes: Sequence[str]) -> list[str]:
    """The classes that are others when they are read and written again, at the beginning or within a caption."""
    twice = {name: f"{name}, {name}" for name in classes}
    return [name for name, text in twice.items() if tokenizer.decode(tokenizer.encode(text).ids) != text]


def pieces(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train another tokenizer: BPE in the manner of SentencePiece, of `size` tokens, whose words begin with ▁."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[UNKNOWN, *reversed(_SPECIAL[:-1])],
        initial_alphabet=_ASCII,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _ready(tokenizer)


def _ready(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE, *_ROLES],
        padding_side="left",
        model_max_length=2048,
    )


def small_processor(tokenizer: PreTrainedTokenizerFast, plan: TowerPlan, template: str) -> LlavaProcessor:
    """Join the tokenizer with a SigLIP image processor (the Pillow one: no torchvision) and a chat template."""
    return LlavaProcessor(
        image_processor=image_processor(plan),
        tokenizer=tokenizer,
        patch_size=plan.patch,
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )


def image_processor(plan: TowerPlan) -> SiglipImageProcessorPil:
    """Scale pictures to the encoder's size and to −1..1."""
    size = {"height": plan.image_size, "width": plan.image_size}
    return SiglipImageProcessorPil(size=size, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])


def begun(
    folder: Path, tokenizer: PreTrainedTokenizerFast, plan: TowerPlan, named: Sequence[str] = ()
) -> LlavaForConditionalGeneration:
    """A LLaVA with the language model of the one in `folder`, another tokenizer and a new encoder and projector.

    A token that the old tokenizer has keeps its row. Another begins as the mean of the old ones of its text; the words of `named`, the new
    classes, begin as one of the old world's forms does, each with noise of its own: that is how their places in questions are known.
    """
    old = LlavaForConditionalGeneration.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)
    settings: Any = old.config.text_config
    text = settings.to_dict() | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlavaConfig(
        vision_config=tower_config(plan),
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    for name, weights in old.model.language_model.state_dict().items():
        if "embed_tokens" not in name:
            model.model.language_model.state_dict()[name].copy_(weights)
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        layer.reset_parameters()  # scaled to the width: the model's own small weights take much longer
    spelled = [_spelled(tokenizer, index, words) for index in range(len(tokenizer))]
    forms = words.convert_tokens_to_ids([*SHAPES, *DIGITS])
    classes = {index for name in named for index in tokenizer(name, add_special_tokens=False).input_ids}
    known = set(words.get_vocab())
    with torch.no_grad():
        for new, before in (
            (model.model.language_model.embed_tokens, old.model.language_model.embed_tokens),
            (model.lm_head, old.lm_head),
        ):
            spread = before.weight[forms].std(0)
            for index, ids in enumerate(spelled):
                if index in classes and tokenizer.convert_ids_to_tokens(index) not in known:
                    new.weight[index] = before.weight[forms].mean(0) + spread * torch.randn_like(spread)
                else:
                    new.weight[index] = before.weight[ids].mean(0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _spelled(tokenizer: PreTrainedTokenizerFast, index: int, words: PreTrainedTokenizerBase) -> list[int]:
    """The old tokenizer's ids for the text of a new token."""
    token = str(tokenizer.convert_ids_to_tokens(index))
    if (same := words.get_vocab().get(token)) is not None:
        return [same]
    inside = f"##{token}"
    if not token.startswith("▁") and inside in words.get_vocab():
        return [words.get_vocab()[inside]]
    text = token.removeprefix("##").replace("▁", " ")
    return words(text, add_special_tokens=False).input_ids or [words.unk_token_id]
