"""The sections `teacher` and `student` of a recipe."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from switchkd.data.forms import LONGEST_TAG
from switchkd.methods import Method
from switchkd.models.quantize import Quantization
from switchkd.names import VisualWeights
from switchkd.recipe.data_section import Named, data_teachers
from switchkd.recipe.field_checks import at_least, require, share
from switchkd.typed_fields import check_fields, suggestion

#: How attention is computed; `auto` is what transformers chooses, SDPA where the model has it.
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class Teacher:
    """The frozen model that is learned from: a checkpoint directory, a run, or a name on the Hugging Face hub."""

    #: A checkpoint directory, the folder of a run (its student), or OWNER/NAME.
    path: str
    #: "auto" keeps the precision of the checkpoint.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: How attention is computed; auto is what transformers chooses, SDPA where the model has it.
    attn_implementation: Attention = "auto"
    #: Of the language model's linear layers, with bitsandbytes: the targets are then those of a slightly different teacher.
    quantization: Quantization | None = None
    #: Of a name on the hub: a commit, a tag or a branch.
    revision: str | None = None
    #: Where its weights lie, in place of the student's device: `cpu`, or another card of this machine, such as `cuda:1`.
    device: str | None = None
    #: So large a share of the weights of its language model's linear layers, those of the smallest magnitude, is 0 in the first fifth of a
    #: stage's steps, and less from fifth to fifth, down to none in the last (Masters).
    mask: float | None = None
    #: A folder that `switchkd cache RECIPE` fills once with what this teacher says of every row: training then reads it there.
    cache: str | None = None
    #: The cache keeps so many largest logits of every answer token, and no hidden states: smaller, and no longer exact.
    cache_logits: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.path), "path must not be empty")
        require(
            self.device is None or re.fullmatch(r"cpu|cuda:\d+", self.device) is not None,
            f"device must be cpu, or a card with its number, such as cuda:1, got {self.device!r}",
        )
        require(self.cache != "", "cache must name a folder, or none")
        require(
            self.mask is None or 0 < self.mask < 1,
            f"mask is a share of the weights, above 0 and below 1, got {self.mask}; leave it out for none",
        )
        others = {
            "cache": (self.cache, "a cache holds what the whole teacher says"),
            "quantization": (
                self.quantization,
                "quantised weights have no magnitudes to go by, and cannot be changed in place",
            ),
        }
        for name, (given, why) in others.items():
            require(
                self.mask is None or given is None,
                f"mask is {self.mask} and {name} is {given}: {why}; keep one of the two",
            )
        at_least(self, 2, "cache_logits")
        require(
            self.cache_logits is None or self.cache is not None,
            f"cache_logits is {self.cache_logits}, and no cache is named: add `cache: FOLDER`, or take it out",
        )


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on all linear layers of the student's language model, which is frozen itself."""

    #: The rank.
    r: int = 16
    #: The adapters are scaled by alpha / r.
    alpha: int = 32
    #: Of what goes into the adapters, while they learn.
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "r", "alpha")
        share(self, "dropout")


@dataclass(frozen=True)
class Student:
    """The model that is trained: a checkpoint directory, a run, or a name on the Hugging Face hub."""

    #: A checkpoint directory, the folder of a run (its student), or OWNER/NAME.
    path: str
    #: Of the weights as they are loaded. Parts that learn are float32 at least; those that are frozen keep this. `train.bf16` computes in
    #: bfloat16 whatever this is.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    #: How attention is computed; auto is what transformers chooses, SDPA where the model has it.
    attn_implementation: Attention = "auto"
    #: Adapters instead of all weights of the language model; `lora: true` takes their defaults.
    lora: LoRA | None = None
    #: QLoRA: the language model's frozen linear layers in 4 bits, with bitsandbytes.
    quantization: Literal["4bit"] | None = None
    #: What no stage trains: parts (vision, projector, language), or modules and parameters by their dotted names, with * for any text.
    freeze: tuple[str, ...] = ()
    #: Of a name on the hub: a commit, a tag or a branch.
    revision: str | None = None
    #: `path` is a finished run, and its bridge and what its method learned of maps go on too, not the student alone. `--from RUN` of
    #: switchkd train sets this and `path`.
    continue_run: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.path), "path must not be empty")
        require(
            self.quantization is None or self.lora is not None,
            "quantization 4bit makes weights that cannot be trained: add `lora`, whose adapters are",
        )


def check_teacher(stage: str, method: Method, teacher: Teacher | None, *, own: bool) -> None:
    """Raise ValueError where a stage's method and its teacher do not go together.

    Args:
        stage: its name.
        method: what it distils.
        teacher: what it learns from.
        own: whether the stage names it itself.
    """
    learns = "teacher" in method.needs
    require(
        teacher is not None or not learns,
        f"stage {stage}: method {method.label} needs a teacher, and the recipe names none; "
        "add `teacher: {path: …}`, or choose method sft",
    )
    require(
        learns or not own,
        f"stage {stage} names a teacher, and its method {method.label} learns from none: take the teacher out, or choose another method",
    )
    if not learns or teacher is None or teacher.cache is None:
        return
    require(
        not any(isinstance(need, VisualWeights) for need in method.needs),
        f"teacher.cache is set, and the answers of stage {stage} have visual weights (method {method.label}): for these the teacher reads "
        "every batch once more, its pictures without detail, and no cache holds what it says then; keep one of the two",
    )
    # a cache holds what the teacher says and nothing else
    inside = ", ".join(sorted(map(str, method.sites)))
    require(
        not inside,
        f"teacher.cache is set, and method {method.label} of stage {stage} compares what is inside the teacher ({inside}), which no cache "
        "holds: take `cache` out, or choose a method that learns from the teacher's answers alone, such as kd, bild or switch_kd",
    )


def check_tags(
    teacher: Teacher | None, tagged: Mapping[str, Teacher], data: Sequence[tuple[str, Named | None]]
) -> None:
    """Raise ValueError where several teachers, and data that name them, do not go together.

    Args:
        teacher: the one of the recipe.
        tagged: its `teachers`.
        data: field → what it names.
    """
    require(
        teacher is None or not tagged,
        f"teacher and teachers are both given ({', '.join(tagged)}): one teaches all rows, of the others every row names one; keep one of "
        "the two sections, or give stages that one teaches whole a `teacher` of their own",
    )
    first: dict[Teacher, str] = {}
    for tag, one in tagged.items():
        plain = tag.replace("-", "").replace("_", "")
        require(
            plain.isalnum() and len(tag) <= LONGEST_TAG,
            f"teachers: a name is at most {LONGEST_TAG} letters, digits, - and _, because it names files, got {tag!r}",
        )
        require(
            first.setdefault(one, tag) == tag,
            f"teachers.{first[one]} and teachers.{tag} are one model, {one.path}: it would lie in memory twice; give it one name, and rows "
            "this name",
        )
    for name, named in data:
        for asked in [] if named is None else data_teachers(named):
            there = ", ".join(tagged) or "none: add `teachers: {NAME: {path: …}}`"
            require(
                asked is None or asked in tagged,
                f"{name} says that rows are taught by {asked!r}, and the names in `teachers` are {there}"
                + suggestion(str(asked), list(tagged)),
            )


def check_caches(teachers: Sequence[Teacher]) -> None:
    """Raise ValueError where one folder would have to hold what two teachers say."""
    by_folder: dict[str | None, Teacher] = {}
    for teacher in teachers:
        first = by_folder.setdefault(teacher.cache, teacher)
        require(
            _said(first) == _said(teacher),
            f"two teachers keep what they say in one folder, teacher.cache {teacher.cache}: {first.path} and {teacher.path} (or one "
            "in two precisions, or kept in two ways); give each a folder of its own",
        )


def _said(teacher: Teacher) -> Teacher:
    """All of a teacher that what it says depends on; how attention is computed, and where, is not among it."""
    return replace(teacher, attn_implementation="auto", device=None)
