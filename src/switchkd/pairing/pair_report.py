"""How a student and its teacher fit, from configs and processors alone: what is compared, what is bridged, who reads what."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, PretrainedConfig, ProcessorMixin

from switchkd.data.chat_format import choose_format
from switchkd.data.errors import DataError
from switchkd.pairing.alignment import match_ids
from switchkd.pairing.compatibility import ROWS, WIDTH, Item, Verdict, compare
from switchkd.pairing.vocabulary import Ids

#: Entries of an image processor's settings that change neither pixels nor their geometry. The numbers of tokens are the models' matter.
_NOT_PIXELS = {
    "image_processor_type", "processor_class", "auto_map", "return_tensors", "data_format", "input_data_format", "device",
    "disable_grouping", "image_seq_length",
}  # fmt: skip


@dataclass(frozen=True)
class Match:
    """What was found about a pair, and what follows."""

    items: list[Item]
    #: What is compared: so many first ids, or the ids that both tokenizers have.
    vocabulary: int | Ids

    @property
    def mismatches(self) -> list[Item]:
        """All in which the two differ."""
        return [item for item in self.items if item.verdict != "fits"]

    @property
    def needs_bridge(self) -> bool:
        """Whether the switch can only go over a bridge."""
        return any(item.verdict == "bridge" for item in self.items)

    @property
    def apart(self) -> bool:
        """Whether each model must read its own images and text."""
        return any(
            item.verdict in ("own inputs", "aligned") or (item.verdict == "bridge" and item.what != WIDTH)
            for item in self.items
        )

    def recipe_lines(self, student: str, teacher: str) -> str:
        """What a recipe for this pair says besides its defaults."""
        lines = [f"teacher: {{path: {teacher}}}", f"student: {{path: {student}}}"]
        if any(item.verdict == "refused for the switch" for item in self.items):
            lines.append("method: {name: switch_kd, switch: 0}")
        return "\n".join(lines) + "\n"


def match_checkpoints(student: str | Path, teacher: str | Path) -> Match:
    """Compare two checkpoints, directories or names on the Hugging Face hub, without their weights.

    Raises:
        ValueError: for families that are not supported, or a processor without a chat format.
    """
    configs = [AutoConfig.from_pretrained(path, trust_remote_code=False) for path in (student, teacher)]
    processors = [AutoProcessor.from_pretrained(path, trust_remote_code=False) for path in (student, teacher)]
    return match((configs[0], processors[0]), (configs[1], processors[1]))


def match(student: tuple[PretrainedConfig, ProcessorMixin], teacher: tuple[PretrainedConfig, ProcessorMixin]) -> Match:
    """Compare config and processor of two models."""
    items = compare(student[0], teacher[0])
    fixed = any(item.what.startswith("visual tokens per") and item.verdict == "fits" for item in items)
    tokens, vocabulary = _tokenizers(student[1], teacher[1])
    if tokens.verdict == "fits":
        items = [_with_padding(item, vocabulary) for item in items]
    items += [*_images(student[1], teacher[1], fixed=fixed), tokens]
    templates = [choose_format(processor).template for _, processor in (student, teacher)]
    same = templates[0] == templates[1]
    items.append(
        Item("chat template", "one", "one", "fits")
        if same
        else Item("chat template", "its own", "its own", "own inputs", "answers are matched by their index")
    )
    return Match(items, vocabulary)


def _with_padding(item: Item, vocabulary: int | Ids) -> Item:
    """Of the rows of two heads with one tokenizer: how many are real."""
    if item.what != ROWS or (item.student == item.teacher == vocabulary):
        return item
    return replace(item, detail=f"{vocabulary} real ids; padding rows are never compared")


def _images(student: Any, teacher: Any, *, fixed: bool) -> list[Item]:
    """Every setting that differs. `fixed`: each picture becomes the same grid of features in both models, whatever its size."""
    ours, theirs = (
        {
            key: value
            for key, value in processor.image_processor.to_dict().items()
            if value is not None and value is not False
        }
        for processor in (student, teacher)
    )
    verdict: Verdict = "own inputs" if fixed else "bridge"
    detail = "each model gets its own pixels of an image"
    found = [
        Item(f"image processor's {key}", ours.get(key), theirs.get(key), verdict, detail)
        for key in sorted((ours | theirs).keys() - _NOT_PIXELS)
        if ours.get(key) != theirs.get(key)
    ]
    return found or [Item("image processor", "one", "one", "fits")]


def _tokenizers(student: Any, teacher: Any) -> tuple[Item, int | Ids]:
    ours, theirs = student.tokenizer, teacher.tokenizer
    sizes = [f"{len(tokenizer):,} tokens" for tokenizer in (ours, theirs)]
    if ours.get_vocab() == theirs.get_vocab():
        return Item("tokenizer", sizes[0], sizes[1], "fits"), len(ours)
    try:
        ids = match_ids(ours, theirs, (choose_format(student).closing_id, choose_format(teacher).closing_id))
    except DataError as error:
        return Item("tokenizer", sizes[0], sizes[1], "refused", str(error)), len(ours)
    detail = f"{len(ids[0]):,} ids mean the same; answers are aligned by their text"
    return Item("tokenizer", sizes[0], sizes[1], "aligned", detail), ids
