"""How a student and its teacher fit, from configs and processors alone: what is compared, what is bridged, who reads what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, PretrainedConfig, ProcessorMixin

from switchkd.data.align import match_ids
from switchkd.data.errors import DataError
from switchkd.data.templates import choose_format
from switchkd.models.fit import WIDTH, Item, Verdict, compare
from switchkd.models.vocabulary import Ids


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
        """The lines of a recipe for this pair."""
        bridge = "auto      # the switch goes over a bridge" if self.needs_bridge else "auto      # none is needed"
        return f"teacher: {{path: {teacher}}}\nstudent: {{path: {student}}}\npair:\n  bridge: {bridge}\n  min_aligned: 0.5\n"


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
    items += [_images(student[1], teacher[1], fixed=fixed), tokens]
    templates = [choose_format(processor).template for _, processor in (student, teacher)]
    same = templates[0] == templates[1]
    items.append(
        Item("chat template", "one", "one", "fits")
        if same
        else Item("chat template", "its own", "its own", "own inputs", "answers are matched by their index")
    )
    return Match(items, vocabulary)


def _images(student: Any, teacher: Any, *, fixed: bool) -> Item:
    """`fixed`: every picture becomes the same grid of features in both models, whatever its size."""
    ours, theirs = (
        {
            key: value
            for key, value in processor.image_processor.to_dict().items()
            if not key.startswith(("image_processor_type", "processor_class"))
        }
        for processor in (student, teacher)
    )
    for key in sorted(ours | theirs):
        if ours.get(key) != theirs.get(key):
            verdict: Verdict = "own inputs" if fixed else "bridge"
            detail = "each model gets its own pixels of an image"
            return Item(f"image processor's {key}", ours.get(key), theirs.get(key), verdict, detail)
    return Item("image processor", "one", "one", "fits")


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
