"""How a student and its teacher fit, from configs and processors alone: what is compared, what is bridged, who reads what."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, ProcessorMixin

from switchkd.data.chat_format import ChatFormat
from switchkd.data.errors import DataError
from switchkd.data.reader import Reader
from switchkd.models.families import family_of
from switchkd.models.opening import load_config, load_processor
from switchkd.pairing.alignment import match_ids, spaced_side
from switchkd.pairing.compatibility import ROWS, Difference, compare
from switchkd.pairing.vocabulary import Ids

#: Entries of an image processor's settings that change neither pixels nor their geometry. The numbers of tokens are the models' matter.
_NOT_PIXELS = {
    "image_processor_type", "processor_class", "auto_map", "return_tensors", "data_format", "input_data_format", "device",
    "disable_grouping", "image_seq_length",
}  # fmt: skip
#: Entries that change the values of pixels and leave the size of an image as it is.
_VALUES = {
    "do_convert_rgb", "do_normalize", "do_rescale", "image_mean", "image_std", "offset", "resample", "rescale_factor",
}  # fmt: skip
#: Entries of a video processor's settings that say which frames are seen, and what else comes back.
_FRAMES = {
    "fps",
    "num_frames",
    "min_frames",
    "max_frames",
    "do_sample_frames",
    "return_metadata",
    "video_processor_type",
}


@dataclass(frozen=True)
class PairReport:
    """What is known about a pair, and what follows."""

    differences: list[Difference]
    #: What is compared: so many first ids, or the ids that both tokenizers have.
    vocabulary: int | Ids
    #: The chat formats of student and teacher.
    formats: tuple[ChatFormat, ...] = ()
    #: What is compared where one model's token has a space before the word that the other's has not; None where both have it or neither.
    first_words: Ids | None = None

    @property
    def mismatches(self) -> list[Difference]:
        """All in which the two really differ."""
        return [difference for difference in self.differences if difference.verdict != "fits"]

    @property
    def needs_bridge(self) -> bool:
        """Whether the switch can only go over a bridge."""
        return any(difference.verdict == "bridge" for difference in self.differences)

    @property
    def separate_inputs(self) -> bool:
        """Whether each model must read its own images and text."""
        return any(difference.separate_inputs for difference in self.differences)

    def recipe_lines(self, student: str, teacher: str) -> str:
        """What a recipe for this pair says besides its defaults."""
        lines = [f"teacher: {{path: {teacher}}}", f"student: {{path: {student}}}"]
        if any(difference.verdict == "refused for the switch" for difference in self.differences):
            lines.append("method: {name: switch_kd, switch: 0}")
        return "\n".join(lines) + "\n"


def compare_checkpoints(student: str | Path, teacher: str | Path) -> PairReport:
    """Compare two checkpoints, directories or names on the Hugging Face hub, without their weights.

    Raises:
        ValueError: for families that are not supported, or a processor without a chat format.
    """
    processors = [load_processor(path) for path in (student, teacher)]
    configs = [load_config(path) for path in (student, teacher)]
    return compare_models((configs[0], processors[0]), (configs[1], processors[1]))


def compare_models(
    student: tuple[PretrainedConfig, ProcessorMixin], teacher: tuple[PretrainedConfig, ProcessorMixin]
) -> PairReport:
    """Compare config and processor of two models."""
    differences = compare(family_of(student[0]), family_of(teacher[0]))
    fixed = any(difference.what.startswith("visual tokens per") for difference in differences)
    readers = [
        Reader(processor, rows=family_of(config).geometry.vocabulary_rows) for config, processor in (student, teacher)
    ]
    formats = readers[0].format, readers[1].format
    real = [reader.ids for reader in readers]
    tokens, vocabulary = _tokenizers(*formats, real)
    if tokens.verdict == "fits":
        differences = [_with_padding(difference, vocabulary) for difference in differences]
    template = Difference("chat template", "one", "one", "fits")
    if formats[0].saved != formats[1].saved:
        template = Difference("chat template", "its own", "its own", "own inputs", "answers are matched by their index")
    first_words = None
    if template.separate_inputs and tokens.verdict != "refused":
        first_words, detail = _first_words(*formats, real)
        template = replace(template, detail=template.detail + detail)
    elif tokens.verdict == "aligned":
        first_words, detail = _first_words(*formats, real)
        tokens = replace(tokens, detail=tokens.detail + detail)
    differences += [*_images(student[1], teacher[1], fixed=fixed), *_videos(student[1], teacher[1]), tokens, template]
    return PairReport(differences, vocabulary, formats, first_words)


def _first_words(student: ChatFormat, teacher: ChatFormat, real: list[int]) -> tuple[Ids | None, str]:
    """Which ids are compared at first words, if the space before an answer is in the first token of one model alone; and what to say."""
    try:
        side = spaced_side(student, teacher)
        if side is None:
            return None, ""
        closing = student.closing_id, teacher.closing_id
        ids = _known(match_ids(student.tokenizer, teacher.tokenizer, closing, spaced=side), real)
    except DataError as error:
        return None, f"; whether first words have a space before them is not known: {error}"
    return (
        ids,
        f"; first words have a space before them for the {side} alone: {len(ids[0]):,} ids mean the same but for it",
    )


def _known(ids: Ids, real: list[int]) -> Ids:
    """Of these pairs, those of which both ids have an embedding."""
    pairs = [pair for pair in zip(*ids, strict=True) if pair[0] < real[0] and pair[1] < real[1]]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _with_padding(difference: Difference, vocabulary: int | Ids) -> Difference:
    """Of the rows of two heads with one tokenizer: how many are real."""
    if difference.what != ROWS or (difference.student == difference.teacher == vocabulary):
        return difference
    return replace(difference, detail=f"{vocabulary} real ids; padding rows are never compared")


def _videos(student: Any, teacher: Any) -> list[Difference]:
    """Settings of videos in which two processors that read them differ; which frames are seen is one rule for both."""
    settings = []
    for processor in (student, teacher):
        if ChatFormat(processor, "").no_videos is not None:
            return []
        own = processor.video_processor.to_dict()
        settings.append({key: value for key, value in own.items() if value is not None and value is not False})
    detail = "each model gets its own pixels of a video"
    return [
        Difference(f"video processor's {key}", settings[0].get(key), settings[1].get(key), "own inputs", detail)
        for key in sorted((settings[0] | settings[1]).keys() - _NOT_PIXELS - _FRAMES)
        if settings[0].get(key) != settings[1].get(key)
    ]


def _images(student: Any, teacher: Any, *, fixed: bool) -> list[Difference]:
    """Every setting that differs, and whether images become other grids by it.

    Args:
        student: its processor.
        teacher: the other's.
        fixed: the configs say how large the grid of an image or tile is, whatever the image's own size.
    """
    settings = [
        {
            key: value
            for key, value in processor.image_processor.to_dict().items()
            if value is not None and value is not False
        }
        for processor in (student, teacher)
    ]
    differing = [
        key
        for key in sorted((settings[0] | settings[1]).keys() - _NOT_PIXELS)
        if settings[0].get(key) != settings[1].get(key)
    ]
    if not differing:
        return [Difference("image processor", "one", "one", "fits")]
    detail = "each model gets its own pixels of an image"
    differences = [
        Difference(f"image processor's {key}", settings[0].get(key), settings[1].get(key), "own inputs", detail)
        for key in differing
    ]
    if not fixed and (geometric := [key for key in differing if key not in _VALUES]):
        detail = f"by the {', '.join(geometric)} of the image processors; resampled to the teacher's grid"
        differences.append(Difference("grid of an image", "its own", "its own", "bridge", detail))
    return differences


def _tokenizers(student: ChatFormat, teacher: ChatFormat, real: list[int]) -> tuple[Difference, int | Ids]:
    """Which ids are compared. `real`: so many first ids of each have an embedding."""
    tokenizers = student.tokenizer, teacher.tokenizer
    sizes = [f"{len(tokenizer):,} tokens" for tokenizer in tokenizers]
    if tokenizers[0].get_vocab() == tokenizers[1].get_vocab():
        return Difference("tokenizer", sizes[0], sizes[1], "fits"), min(real)
    try:
        ids = _known(match_ids(*tokenizers, (student.closing_id, teacher.closing_id)), real)
    except DataError as error:
        return Difference("tokenizer", sizes[0], sizes[1], "refused", str(error)), min(real)
    detail = f"{len(ids[0]):,} ids mean the same; answers are aligned by their text"
    return Difference("tokenizer", sizes[0], sizes[1], "aligned", detail), ids
