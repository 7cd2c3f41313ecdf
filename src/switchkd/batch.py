"""What the models read: the inputs of one model, and a batch of the student's and its teachers'."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only

from switchkd.names import TEACHER as TEACHER
from switchkd.names import Kind

_Tree = TypeVar("_Tree")
#: What a family's image or video processor makes, by the names of the model's arguments.
Media = dict[str, Tensor]


class Inputs(NamedTuple):
    """What one model reads: conversations, and where in them the answers are.

    A padded row is one sample; a packed row is several, one behind the other. Both are filled up on the right.

    `predicts`, `targets` and `sample` are made once, by the collator: the only place where answers are shifted against the positions that
    predict them. They are places, not masks, so that shapes are known without looking at values.
    """

    tokens: Int[Tensor, "batch sequence"]
    #: Tokens of each sample; what follows them, up to the next sample or the end of the row, is padding.
    lengths: Int[Tensor, " samples"]
    #: The flat places (row · sequence + column) whose next token is part of an answer, in order.
    predicts: Int[Tensor, " answers"]
    #: These next tokens.
    targets: Int[Tensor, " answers"]
    #: Whose answers they are, from 0.
    sample: Int[Tensor, " answers"]
    #: All pictures and videos of the batch, each kind in the order of its placeholders; a kind that no sample has is absent. Frames that a
    #: model takes as images are among these.
    media: dict[Kind, Media]
    #: What positions and attention masks of some language models depend on, by the names of the model's arguments.
    types: dict[str, Int[Tensor, "batch sequence"]]
    #: Position of each token in its sample, 0 in the padding; None where rows are padded, whose tokens the model counts.
    positions: Int[Tensor, "batch sequence"] | None = None
    #: The flat places where samples begin in packed rows, ascending; None where rows are padded.
    offsets: Int[Tensor, " samples"] | None = None

    @property
    def images(self) -> Media | None:
        """The pictures; None where no sample has any."""
        return self.media.get("image")

    @property
    def shown(self) -> Media | None:
        """All that V looks at, pictures and videos, which no model calls by one name; None where no sample has any."""
        return {name: tensor for one in self.media.values() for name, tensor in one.items()} or None

    def is_text(self) -> Bool[Tensor, "batch sequence"]:
        """Where there is a token, and no padding."""
        return self.samples() >= 0

    def samples(self) -> Int[Tensor, "batch sequence"]:
        """Whose each token is, from 0; -1 for padding."""
        rows, width = self.tokens.shape
        places = torch.arange(rows * width, device=self.tokens.device)
        if self.offsets is None:
            number, begin = places // width, places // width * width
        else:
            number = torch.searchsorted(self.offsets, places, right=True) - 1
            begin = self.offsets[number]
        return torch.where(places - begin < self.lengths[number], number, -1).view(rows, width)

    def rows(self) -> Int[Tensor, " samples"]:
        """In which row each sample is."""
        if self.offsets is None:
            return torch.arange(len(self.lengths), device=self.tokens.device)
        return self.offsets // self.tokens.shape[1]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Inputs":
        """The same on `device`."""
        moved: Inputs = _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved


class TopLogits(NamedTuple):
    """The largest logits of some answers, as log-probabilities over what is compared, and what is left for each other id."""

    values: Float[Tensor, "answers k"]
    #: As columns of what is compared.
    columns: Int[Tensor, "answers k"]
    #: The log-probability of every id that is not among them: what they leave is spread evenly.
    rest: Float[Tensor, " answers"]


#: What a cache holds of a teacher at some answers: its hidden states before the head, or its largest logits.
Stored = Tensor | TopLogits


class Aligned(NamedTuple):
    """Which answers of the student are compared with a teacher's, and what they are there."""

    #: Their places among the student's answers, ascending; None: all of them.
    student: Int[Tensor, " compared"] | None
    #: Their places among the answers that the teacher reads; None: all of them.
    reader: Int[Tensor, " compared"] | None
    #: The answer tokens as columns of what is compared.
    targets: Int[Tensor, " compared"]
    #: `student` on the host, wherever the tensors go: chunks of answers are cut by it without waiting for a GPU. None for all of them, and
    #: where nobody has made it.
    places: Int[np.ndarray, " compared"] | None = None
    #: What the teacher says there, where a cache has it; None: the teacher is asked.
    stored: Stored | None = None


_NO_FIRST_WORDS: dict[str, Aligned] = {}


class Batch(NamedTuple):
    """Some samples, as the student and as each of its teachers reads them."""

    #: One for each sample: its id, and a digest of its content, processor and template (`sample_id` gives the id back).
    keys: tuple[str, ...]
    student: Inputs
    #: By the teacher's name; the student's own object where the two read alike.
    readers: dict[str, Inputs]
    #: By the teacher's name.
    shared: dict[str, Aligned]
    #: By the teacher's name: further answers, of which one model's token has a space before the word that the other's has not, as first
    #: words do. Their targets are columns of other ids. A name without any is absent.
    first_words: dict[str, Aligned] = _NO_FIRST_WORDS
    #: Whose answers the student wrote itself: there is no label for these, so no cross-entropy. None: nobody's.
    written: Bool[Tensor, " samples"] | None = None

    @property
    def parts(self) -> dict[str, "Batch"]:
        """By whom they are taught → samples: all of them by one (`TaggedBatch` has others)."""
        return {TEACHER: self}

    @property
    def own_inputs(self) -> bool:
        """Whether a teacher reads something else than the student."""
        return any(reader is not self.student for reader in self.readers.values())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU copies from without waiting."""
        return self._with(Tensor.pin_memory)

    def without_answers(self) -> "Batch":
        """The same to read, and nothing of it to learn from: its loss is 0."""
        student = _unanswered(self.student)
        readers = {
            name: student if reader is self.student else _unanswered(reader) for name, reader in self.readers.items()
        }
        shared = {name: _none_of(aligned) for name, aligned in self.shared.items()}
        return Batch(self.keys, student, readers, shared)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        student = _mapped(self.student, change)
        readers = {
            name: student if reader is self.student else _mapped(reader, change)
            for name, reader in self.readers.items()
        }
        shared, first_words = _mapped(self.shared, change), _mapped(self.first_words, change)
        return Batch(self.keys, student, readers, shared, first_words, _mapped(self.written, change))


class TaggedBatch(NamedTuple):
    """Some samples of which each is taught by one of several teachers: a batch of those of each.

    What learns from it runs once for each part. A loss is a sum over answer tokens, which is divided by their number in the global batch,
    so it does not matter which samples run together.
    """

    #: By the teacher's tag, in the order of the recipe; one that teaches none of the samples is absent, or has a part without answers.
    parts: dict[str, Batch]

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all samples, part by part."""
        return tuple(key for part in self.parts.values() for key in part.keys)

    @property
    def own_inputs(self) -> bool:
        """Whether a teacher reads something else than the student."""
        return any(part.own_inputs for part in self.parts.values())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TaggedBatch":
        """The same on `device`."""
        return TaggedBatch({tag: part.to(device, non_blocking=non_blocking) for tag, part in self.parts.items()})

    def pin_memory(self) -> "TaggedBatch":
        """As that of a `Batch`."""
        return TaggedBatch({tag: part.pin_memory() for tag, part in self.parts.items()})

    def without_answers(self) -> "TaggedBatch":
        """As that of a `Batch`."""
        return TaggedBatch({tag: part.without_answers() for tag, part in self.parts.items()})


#: What a collator makes.
AnyBatch = Batch | TaggedBatch


def tokens_read(batch: AnyBatch) -> int:
    """How many tokens the student reads in it, without padding."""
    tokens = 0
    for part in batch.parts.values():
        tokens += int(part.student.lengths.sum())
    return tokens


def sample_id(key: str) -> str:
    """The id of the sample that a key belongs to, of a batch or of an index."""
    return key.rpartition("@")[0]


def named(keys: Sequence[str]) -> str:
    """The samples of a batch, for an error."""
    names = [ascii(sample_id(key)) for key in keys]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _unanswered(inputs: Inputs) -> Inputs:
    return inputs._replace(predicts=inputs.predicts[:0], targets=inputs.targets[:0], sample=inputs.sample[:0])


def _none_of(aligned: Aligned) -> Aligned:
    return Aligned(None, None, aligned.targets[:0], stored=_mapped(aligned.stored, lambda tensor: tensor[:0]))


def _mapped(tree: _Tree, change: Callable[[Tensor], Tensor]) -> _Tree:
    mapped: _Tree = tree_map_only(Tensor, change, tree)
    return mapped
