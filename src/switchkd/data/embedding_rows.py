"""Ids and rows: a tokenizer may have ids for which a model has no embedding. One that is used is an error, the others are left out."""

from switchkd.data.chat_format import PROBES, ChatFormat
from switchkd.data.errors import DataError, SampleError


def check_used_ids(chat: ChatFormat, rows: int, placeholder: str) -> None:
    """Raise DataError for an id without an embedding that the template or the processor writes, or that text can give.

    Args:
        chat: the tokenizer with the template in use.
        rows: of the model's embeddings.
        placeholder: what the processor writes for an image.
    """
    tokens = {index: token for token, index in chat.tokenizer.get_vocab().items()}
    special = {index for index, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    written = {chat.image_token_id, chat.closing_id}
    for probe in PROBES.keys() - chat.refused.keys():
        images = sum(part["type"] == "image" for message in PROBES[probe] for part in message["content"])
        written.update(chat.tokenize(PROBES[probe], [placeholder] * images).input_ids)
    used = sorted(index for index in tokens if index >= rows and (index in written or index not in special))
    if used:
        why = "the chat template or the processor writes it" if used[0] in written else "text can give it"
        name = chat.tokenizer.name_or_path
        raise DataError(
            f"the tokenizer{f' of {name}' if name else ''} has {len(chat.tokenizer):,} ids and its model {rows:,} embedding rows: id "
            f"{used[0]:,} ({tokens[used[0]]!a}) has none, and {why}. Give the model more rows (resize_token_embeddings), or the "
            "checkpoint its own tokenizer and chat template"
        )


def check_ids(chat: ChatFormat, input_ids: list[int], rows: int) -> None:
    """Raise SampleError for an id without an embedding."""
    if (largest := max(input_ids, default=0)) >= rows:
        raise SampleError(
            f"holds id {largest:,} ({chat.tokenizer.convert_ids_to_tokens(largest)!a}), and the model has {rows:,} embedding rows: give "
            "it more of them (resize_token_embeddings), or leave out what is written so"
        )
