"""What methods learn from: next-token distributions at the answers, and what is inside both models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from switchkd.batch import TopLogits
from switchkd.names import Place
from switchkd.names import Route as Route


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
    """Of a model: what maps from one to another are made for."""

    #: Of the language model.
    width: int
    #: Of the attention's queries.
    heads: int
    #: Channels of V(x).
    features: int


@runtime_checkable
class Logits(Protocol):
    """A next-token distribution for each of some answers, which need not stand in memory as a whole."""

    def __len__(self) -> int:
        """How many answers."""

    def rows(self, part: slice) -> Float[Tensor, "part vocab"]:
        """The logits of some of them, in float32 or wider."""


@dataclass(frozen=True)
class FromHidden:
    """`Logits` of a live model: hidden states after the final norm, and the head that makes logits of them."""

    hidden: Float[Tensor, "answers hidden"]
    head: Head
    #: The first so many ids; None: all rows of the head.
    vocabulary: int | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def rows(self, part: slice) -> Float[Tensor, "part vocab"]:
        """See `Logits`."""
        return self.head.logits(self.hidden[part])[:, : self.vocabulary]


@dataclass(frozen=True)
class FromTopLogits:
    """`Logits` of which the largest are known; all other ids of an answer share what these leave, evenly."""

    stored: TopLogits
    #: How many ids are compared.
    vocabulary: int

    def __len__(self) -> int:
        return len(self.stored.rest)

    def rows(self, part: slice) -> Float[Tensor, "part vocab"]:
        """See `Logits`: log-probabilities."""
        values, columns, rest = (tensor[part] for tensor in self.stored)
        return rest[:, None].repeat(1, self.vocabulary).scatter_(1, columns.long(), values)


@dataclass(frozen=True)
class Compared:
    """The distributions of one teacher: over the ids that it shares with the student, at the answers that both have."""

    teacher: Logits
    #: How many ids are compared: real ones that both models have, no padding rows.
    vocabulary: int
    #: These answers, as columns of what is compared.
    targets: Int[Tensor, " compared"]
    #: L_T(P_T(V_S(x)), t); None where the method does not ask for it.
    switch: FromHidden | None = None
    #: Which of the student's answers they are, by their places, ascending; None: all.
    answers: Int[Tensor, " compared"] | None = None
    #: The student's ids for the columns; None where they are the first ones.
    ids: Int[Tensor, " vocab"] | None = None
    #: `answers` on the host, where the collator made it (`Aligned.places`).
    places: Int[np.ndarray, " compared"] | None = None
    #: Further answers, over other ids: one model's token has a space before the word that the other's has not; None without any.
    first_words: "Compared | None" = None
    #: What each weighs in divergences, and its visual advantage in nats (`VisualWeights`); None where all weigh the same.
    weights: Float[Tensor, " compared"] | None = None
    advantage: Float[Tensor, " compared"] | None = None


@dataclass(frozen=True)
class Activations:
    """What a student and a teacher make of every sample on their way to the answers, as far as the method asks for it."""

    #: Place (a `Site`) → one tensor for each sample.
    student: Mapping[Any, list[Float[Tensor, "..."]]]
    teacher: Mapping[Any, list[Float[Tensor, "..."]]]
    #: From hidden states to logits of the ids that are compared: the same ids in both models, and no padding.
    student_head: Head
    teacher_head: Head
    #: Of the samples.
    keys: tuple[str, ...]

    def pairs(self, site: Place, *, width: bool = True) -> list[tuple[Float[Tensor, "..."], Float[Tensor, "..."]]]:
        """What both models have there of each sample.

        Args:
            site: where.
            width: whether the last axis must agree too. It does not where a head or a learned map comes before the comparison.

        Raises:
            LookupError: for a site that the method does not name in `needs`.
            ValueError: with both numbers, where the two cannot be laid side by side.
        """
        if site not in self.student:
            raise LookupError(f"activation {site} was not captured: the method does not name it in `needs`")
        pairs = list(zip(self.student[site], self.teacher[site], strict=True))
        for key, (student_x, teacher_x) in zip(self.keys, pairs, strict=True):
            for what, axis in zip(site.axes, (-2, -1) if width else (-2,), strict=False):
                if student_x.shape[axis] != teacher_x.shape[axis]:
                    raise ValueError(
                        f"sample {key!a} has {student_x.shape[axis]} {what} of {site} in the student and {teacher_x.shape[axis]} in the "
                        "teacher, and they are compared one by one: choose models (or image processors) that agree in this, or another "
                        "method"
                    )
        return pairs


@dataclass(frozen=True)
class Signals:
    """Everything that a method can learn from in a batch. No logits stand in memory yet: `logits` makes those of some answers."""

    student: FromHidden
    #: The answer tokens, in the student's ids.
    targets: Int[Tensor, " answers"]
    #: Whose answers they are.
    sample: Int[Tensor, " answers"]
    #: Of the samples.
    keys: tuple[str, ...]
    #: By the teacher's name.
    compared: Mapping[str, Compared]
    #: By the teacher's name; empty where the method looks at nothing inside.
    activations: Mapping[str, Activations]
    #: Which answers are the data's, and so labels for the cross-entropy; None: all.
    labelled: Bool[Tensor, " answers"] | None = None

    def parts(self) -> tuple["Signals", ...]:
        """The same answers in one or two groups, in each of which one set of ids is compared; a loss is summed over them.

        The second group are the first words (`Compared.first_words`); what is inside the models stays with the whole.

        Raises:
            ValueError: for first words of one of several teachers.
        """
        if all(one.first_words is None for one in self.compared.values()):
            return (self,)
        if len(self.compared) > 1:
            raise ValueError(
                f"first words are compared over ids of their own, and that for one teacher, not for {', '.join(self.compared)} together: "
                "give each of them the student's chat template"
            )
        ((name, one),) = self.compared.items()
        first = one.first_words
        assert first is not None
        assert first.answers is not None
        is_first = torch.zeros_like(self.targets, dtype=torch.bool).index_fill(0, first.answers, True)
        others = is_first.to(torch.uint8).argsort(stable=True)[
            : len(is_first) - len(first.answers)
        ]  # no look at values
        # those of `one` are all among the others: what they are there is how many others stand before them
        answers = None if one.answers is None else (~is_first).cumsum(0)[one.answers] - 1
        places = None
        if one.places is not None and first.places is not None:
            places = one.places - np.searchsorted(first.places, one.places)
        return (
            self._at(others, {name: replace(one, answers=answers, places=places, first_words=None)}),
            self._at(first.answers, {name: replace(first, answers=None, places=None)}),
        )

    def _at(self, answers: Int[Tensor, " n"], compared: "Mapping[str, Compared]") -> "Signals":
        student = replace(self.student, hidden=self.student.hidden.index_select(0, answers))
        labelled = None if self.labelled is None else self.labelled[answers]
        return Signals(student, self.targets[answers], self.sample[answers], self.keys, compared, {}, labelled)

    def logits(self) -> "AnswerLogits":
        """All logits at once: for loops of one's own, and for debugging.

        Raises:
            ValueError: where not all answers are compared over one set of ids.
        """
        if any(one.first_words is not None for one in self.compared.values()):
            raise ValueError(
                "first words are compared over other ids than the rest (`Compared.first_words`): take the logits of each of the `parts()`, "
                "and sum the loss over them"
            )
        whole = self.student.rows(slice(None))
        return AnswerLogits(
            whole,
            self.targets,
            {
                name: ComparedLogits(
                    whole,
                    one.teacher.rows(slice(None)),
                    None if one.switch is None else one.switch.rows(slice(None)),
                    one.targets,
                    one.answers,
                    one.ids,
                    one.weights,
                    one.advantage,
                )
                for name, one in self.compared.items()
            },
            self.labelled,
        )


@dataclass(frozen=True)
class TokenTerm:
    """A term of the loss, or a statistic: one value in nats for each of some answers."""

    values: Float[Tensor, " n"]
    #: Which answers these are, by their places; None: all of them.
    answers: Int[Tensor, " n"] | None = None


#: Named terms about answer tokens.
TokenTerms = dict[str, TokenTerm]
#: Named values, one for each sample of the batch.
SampleTerms = dict[str, Float[Tensor, " samples"]]


@dataclass(frozen=True)
class ComparedLogits:
    """Logits over the ids that student and teacher share, at the answers that both have."""

    #: The student's at all answers and all rows of its head.
    whole: Float[Tensor, "answers rows"]
    teacher: Float[Tensor, "compared vocab"]
    switch: Float[Tensor, "compared vocab"] | None
    targets: Int[Tensor, " compared"]
    #: As in `Compared`.
    answers: Int[Tensor, " compared"] | None = None
    ids: Int[Tensor, " vocab"] | None = None
    weights: Float[Tensor, " compared"] | None = None
    advantage: Float[Tensor, " compared"] | None = None

    @cached_property
    def student(self) -> Float[Tensor, "compared vocab"]:
        """The student's, cut to what is compared."""
        chosen = self.whole if self.answers is None else self.whole[self.answers]
        return chosen[:, : self.teacher.shape[-1]] if self.ids is None else chosen[:, self.ids]

    def of(self, route: Route) -> Float[Tensor, "compared vocab"]:
        """The logits of a pathway.

        Raises:
            LookupError: for the switch where the method does not ask for it.
        """
        logits = self.student if route == "student" else self.teacher if route == "teacher" else self.switch
        if logits is None:
            raise LookupError("the switch was not run: the method does not name it in `needs`")
        return logits

    def term(self, values: Float[Tensor, " compared"]) -> TokenTerm:
        """A term about these answers."""
        return TokenTerm(values, self.answers)


@dataclass(frozen=True)
class AnswerLogits:
    """The logits of some answers, as the terms of methods read them."""

    #: Every row of the student's head, so that its cross-entropy is the one that plain Hugging Face code computes.
    student: Float[Tensor, "answers rows"]
    targets: Int[Tensor, " answers"]
    #: By the teacher's name.
    compared: Mapping[str, ComparedLogits]
    #: As in `Signals`: the term `ce` is 0 for the others.
    labelled: Bool[Tensor, " answers"] | None = None

    def term(self, values: Float[Tensor, " answers"]) -> TokenTerm:
        """A term about all of them."""
        return TokenTerm(values)

    def with_student(self, student: Float[Tensor, "answers rows"]) -> "AnswerLogits":
        """The same with other logits of the student."""
        return replace(
            self, student=student, compared={name: replace(one, whole=student) for name, one in self.compared.items()}
        )
