"""What travels between the parts of the project: a batch on the way in, routes on the way out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: The pathways whose logits at the answer positions a method can ask for.
Route = Literal["student", "teacher", "switch"]
#: What a method can look at inside both models, row by row: V(x), P(V(x)), the hidden states after the final norm at the visual tokens,
#: those at the text positions (`text_positions`), and the attention that the language model's first layer pays from these to the visual
#: tokens.
Look = Literal["features", "projected", "visual", "text", "attention"]
#: All that a method can ask for.
Need = Route | Look
LOOKS: frozenset[Look] = frozenset(get_args(Look))

#: Label of a position that is not part of an answer, as in the rest of the Hugging Face world.
IGNORE_INDEX = -100


class Batch(TypedDict):
    """Padded conversations and their images, ready for a pathway.

    `labels` repeats `input_ids` on answer tokens and is `IGNORE_INDEX` elsewhere. It is *not* shifted: the pathway shifts, once.
    """

    input_ids: Int[Tensor, "batch sequence"]
    attention_mask: Int[Tensor, "batch sequence"]
    labels: Int[Tensor, "batch sequence"]
    #: All images of the batch in the order of their placeholders, as the family's image processor cuts them; absent where no row has one.
    pixel_values: NotRequired[Float[Tensor, "..."]]
    #: What else image processors make: the families say in `models/families` which of these they take.
    pixel_attention_mask: NotRequired[Int[Tensor, "rows tiles height width"]]
    image_sizes: NotRequired[Int[Tensor, "images 2"]]
    image_grid_thw: NotRequired[Int[Tensor, "images 3"]]
    #: How many images each row that has images has.
    batch_num_images: NotRequired[Int[Tensor, " rows"]]
    #: What positions and attention masks of some language models depend on.
    mm_token_type_ids: NotRequired[Int[Tensor, "batch sequence"]]
    token_type_ids: NotRequired[Int[Tensor, "batch sequence"]]
    #: The same conversations and answers as the teacher's own processor and template give them; absent where both models read the same.
    teacher: NotRequired["Batch"]
    #: The answer tokens that are compared, by their places in `answer_targets` of student and teacher; present where `teacher` is.
    aligned: NotRequired[Int[Tensor, "compared 2"]]


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch, and the teacher's in it, on `device`."""
    moved: Any = {
        name: to_device(cast(Batch, value), device) if isinstance(value, dict) else cast(Tensor, value).to(device)
        for name, value in batch.items()
    }
    return moved


def answer_positions(labels: Int[Tensor, "batch sequence"]) -> Bool[Tensor, "batch sequence"]:
    """Positions whose *next* token is part of an answer: where the logits are compared. The only shift of the project."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE_INDEX
    return mask


def answer_targets(labels: Int[Tensor, "batch sequence"]) -> Int[Tensor, " answers"]:
    """The answer tokens themselves, in the order of `answer_positions`."""
    shifted = labels[:, 1:]
    return shifted[shifted != IGNORE_INDEX]


def text_positions(
    input_ids: Int[Tensor, "batch sequence"], attention_mask: Int[Tensor, "batch sequence"], image_token: int
) -> Bool[Tensor, "batch sequence"]:
    """Positions of text whose next token is text too: no padding, no visual token, and not the end of a row."""
    text = (attention_mask != 0) & (input_ids != image_token)
    mask = torch.zeros_like(text)
    mask[:, :-1] = text[:, :-1] & text[:, 1:]
    return mask


@dataclass(frozen=True)
class Routes:
    """Next-token logits at the answer positions, one tensor for each pathway that a method needs.

    `student` holds every answer and every row of the student's head, so that its cross-entropy is the one plain Hugging Face code
    computes. `teacher` and `switch` hold what is compared: the real ids that both models have (the padding rows of a head never take
    part), at the answer tokens that both have.
    """

    student: Float[Tensor, "answers rows"]
    teacher: Float[Tensor, "compared vocab"] | None = None
    switch: Float[Tensor, "compared vocab"] | None = None
    #: The answers that are compared, by their places, ascending; None where all are.
    compared: Int[Tensor, " compared"] | None = None
    #: The student's ids for the columns of `teacher` and `switch`; None where they are the first ones.
    ids: Int[Tensor, " vocab"] | None = None

    def __getitem__(self, need: Route) -> Float[Tensor, "compared vocab"]:
        """The logits that are compared: the student's cut to what it shares with the teacher, the others as they are."""
        if need == "student":
            if self.teacher is None:
                return self.student
            spoken = self.student if self.compared is None else self.student[self.compared]
            return spoken[:, : self.teacher.shape[-1]] if self.ids is None else spoken[:, self.ids]
        logits = self.teacher if need == "teacher" else self.switch
        if logits is None:
            raise LookupError(f"the {need} route was not run: the method does not name it in `needs`")
        return logits


class Head(NamedTuple):
    """The output matrix of a language model: z = h Wᵀ + b; with a soft cap c behind it, c·tanh(z / c)."""

    weight: Float[Tensor, "rows hidden"]
    bias: Float[Tensor, " rows"] | None = None
    softcap: float | None = None

    @property
    def rows(self) -> int:
        """The real ids of the vocabulary, and padding."""
        return self.weight.shape[0]

    def logits(self, hidden: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions rows"]:
        """z, in float32 or wider also under autocast: logits rounded to bf16 tie, and ties lose the ranking of the top-k."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            z = F.linear(hidden.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
            return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class Sizes(NamedTuple):
    """Of a language model: what maps from one to another are made for."""

    width: int
    #: Of the attention's queries.
    heads: int


@dataclass(frozen=True)
class Inner:
    """What one model makes of every row of the batch on its way to the answers, as far as the method asks for it.

    `features`, `projected` and `visual` are [tokens, width] for each row, `text` is [texts, width], `attention` [heads, texts, tokens]. A
    row without an image has 0 tokens.
    """

    rows: Mapping[Look, list[Float[Tensor, "..."]]]
    #: From hidden states to logits of the ids that are compared: the same ids in both models, and no padding.
    head: Head

    def __getitem__(self, look: Look) -> list[Float[Tensor, "..."]]:
        """One tensor for each row."""
        if look not in self.rows:
            raise LookupError(f"nobody looked at {look}: the method does not name it in `needs`")
        return self.rows[look]


@dataclass(frozen=True)
class Hidden:
    """`Routes` one step earlier: hidden states after the final norm at the answer positions, and the heads that make logits of them.

    What a loss needs that must not hold the logits of all positions at once.
    """

    student: Float[Tensor, "answers hidden"]
    student_head: Head
    #: How many ids are compared, the real ones that both models have: the first rows of `teacher_head`.
    vocabulary: int
    teacher: Float[Tensor, "compared teacher_hidden"] | None = None
    switch: Float[Tensor, "compared teacher_hidden"] | None = None
    teacher_head: Head | None = None
    #: As in `Routes`.
    compared: Int[Tensor, " compared"] | None = None
    ids: Int[Tensor, " vocab"] | None = None
    #: What the method looks at inside both models; None where it looks at nothing.
    student_inner: Inner | None = None
    teacher_inner: Inner | None = None

    def routes(self) -> Routes:
        """All logits."""

        def heard(hidden: Tensor | None) -> Tensor | None:
            return None if hidden is None or head is None else head.logits(hidden)[:, : self.vocabulary]

        head = self.teacher_head
        spoken = self.student_head.logits(self.student)
        return Routes(spoken, heard(self.teacher), heard(self.switch), self.compared, self.ids)
