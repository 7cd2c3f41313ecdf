"""Tokenizers of three kinds over one text, so that their words are cut in different places, and processors with them."""

import json

from tiny import tiny_processor
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from switchkd.models.families.llava import VICUNA

TEXT = [
    "What is in the image? A red circle and a blue square.",
    "How many shapes are there? There are three. Is the cat left of the dog? Yes. No.",
    "system user assistant You are a helpful assistant. USER: ASSISTANT:",
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. Sure?",
]
ALPHABET = [chr(code) for code in range(33, 127)]


def sentencepiece_tokenizer(vocabulary: int = 170) -> PreTrainedTokenizerFast:
    """Like Llama's: a space is ▁, characters that are missing fall into bytes; answers end with `</s>`."""
    special = ["<unk>", "<s>", "</s>", "<image>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>", model_max_length=4096,
    )  # fmt: skip


def wordpiece_tokenizer(vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """Like BERT's: spaces are lost, the pieces inside a word begin with ##; answers end with `<end>`."""
    special = ["<pad>", "<end>", "<unk>", "<image>"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>", pad_token="<pad>", model_max_length=4096
    )


def other_processor(
    tokenizer: PreTrainedTokenizerFast, *, chat_template: str = VICUNA, image_size: int = 48, patch_size: int = 16
) -> LlavaProcessor:
    """A processor that shares nothing with `tiny_processor`: tokenizer, template, resolution and patch size."""
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": image_size, "width": image_size}),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


__all__ = ["other_processor", "sentencepiece_tokenizer", "tiny_processor", "wordpiece_tokenizer"]
