"""A student and its frozen teacher: the visual switch, and what must agree before it can work."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from switchkd.batch import TEACHER, Aligned, Batch, Inputs, TopLogits
from switchkd.models.capture import (
    Capture,
    Site,
    Switched,
    capture,
    learned_by_vision_alone,
    of_samples,
)
from switchkd.models.families import FeatureGrid, Features
from switchkd.models.pathway import Pathway
from switchkd.models.teacher_head import TeacherHead
from switchkd.names import VisualWeights
from switchkd.pairing import compatibility
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.crossing import Crossing
from switchkd.pairing.fisher import feature_fisher
from switchkd.pairing.visual_weights import shows_something, weighed, without_detail
from switchkd.pairing.vocabulary import Ids, Vocabulary
from switchkd.signals import Activations, Compared, FromHidden, FromTopLogits, Head, Logits, Route, Signals


class Pair(nn.Module):
    """A student, and a teacher where the method has one.

    The teacher is in eval mode and without gradients whatever happens to the pair; the switch runs *through* it, so that the gradient
    reaches the student's vision encoder. Each model reads its own inputs of a batch, which are one object where both read alike.

    Args:
        student: the pathway that learns.
        teacher: the frozen pathway, or None. Its head alone serves where all that is needed of it are answers that a cache has.
        needs: what the method will ask for; what that requires is checked here, before anything runs.
        vocabulary: the number of real token ids, `len(processor.tokenizer)`; head rows beyond it are padding and never compared. Where
            the tokenizers differ, the ids that mean the same in both. Required where `needs` has the teacher.
        first_words: the ids that are compared where one model's token has a space before the word that the other's has not; None where
            batches have no such answers.
        bridge: from the student's visual features to the teacher's projector, where their shapes differ.
        learned: what else the method trains, besides the student: it lives and learns with the pair and is in no student.
        teacher_device: where the teacher lies, if it is to stay there whatever is done with the pair: it is then no part of this module,
            and its head has a copy where the student is, so that all that is compared lies on one device.

    Raises:
        ValueError: if the pair does not fit `needs`, with both numbers.
    """

    #: None where there is none, or its head alone.
    teacher: Pathway | None

    def __init__(
        self,
        student: Pathway,
        teacher: Pathway | TeacherHead | None,
        *,
        needs: frozenset[Route | Site | VisualWeights],
        vocabulary: int | Ids | None = None,
        first_words: Ids | None = None,
        bridge: Bridge | None = None,
        learned: nn.Module | None = None,
        teacher_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.separate_inputs = check_compatible(student, teacher, needs, bridged=bridge is not None)
        self.needs = needs
        self.student = student
        self.crossing = Crossing(student.head.weight.device, teacher_device if isinstance(teacher, Pathway) else None)
        live = teacher.requires_grad_(False).eval() if isinstance(teacher, Pathway) else None
        if live is not None and self.crossing.teacher is not None:
            vars(self)["teacher"] = (
                live  # no part of this module: what moves, prepares or shards the pair leaves it where it is
            )
            weight, bias, _ = self.crossing.back(live.head)
            teacher = TeacherHead(live.model.config, weight.detach(), None if bias is None else bias.detach())
        else:
            self.teacher = live
        #: In the teacher's place, where it is not there itself, or on another device.
        self.teacher_head = teacher.requires_grad_(False) if isinstance(teacher, TeacherHead) else None
        self.bridge = (
            bridge if any(need == "switch" or (isinstance(need, Site) and need.bridged) for need in needs) else None
        )
        self.learned = learned
        self.sites = frozenset(need for need in needs if isinstance(need, Site))
        #: Of these, those that are captured in the student too.
        self.student_sites = frozenset(site for site in self.sites if not site.teacher_alone)
        student.show_attention(any(site.eager_attention for site in self.student_sites))
        if self.teacher is not None:
            self.teacher.show_attention(any(site.eager_attention for site in self.sites))
        head = teacher.head if teacher is not None and "teacher" in needs else None
        self.shared = Vocabulary(vocabulary, student.head, head)
        self.first_words = None if first_words is None or head is None else Vocabulary(first_words, student.head, head)

    def share_student(self) -> "Pair":
        """Leave the student to another module: of several pairs with one student, one moves and saves it."""
        vars(self)["student"] = self._modules.pop("student")
        return self

    @property
    def auxiliary_modules(self) -> dict[str, nn.Module | None]:
        """What learns with the student and is not part of it, by its name in the pair."""
        return {"bridge": self.bridge, "learned": self.learned}

    @property
    def vocabulary(self) -> int:
        """How many ids are compared."""
        return self.shared.size

    def dropped_mass(self, signals: Signals) -> Float[Tensor, " compared"] | None:
        """The teacher's probability on ids that are not compared, at first words last; None where all real ones are."""
        one = signals.compared.get(TEACHER)
        if one is None or not isinstance(one.teacher, FromHidden):
            return None
        dropped = self.shared.dropped_mass(one.teacher.hidden, self._head)
        if one.first_words is None or self.first_words is None or not isinstance(one.first_words.teacher, FromHidden):
            return dropped
        of_first = self.first_words.dropped_mass(one.first_words.teacher.hidden, self._head)
        assert of_first is not None
        return torch.cat([of_first.new_zeros(len(one.targets)) if dropped is None else dropped, of_first])

    def forward(self, batch: Batch, needs: frozenset[Route | Site | VisualWeights] | None = None) -> Signals:
        """The signals that `needs` names: the student's, the teacher's and the switch's distributions, and what is inside both models.

        Args:
            batch: what both read.
            needs: of what the pair was made for, what is wanted now; None: all. Pathways that are not wanted do not run.

        Raises:
            ValueError: for inputs that the two cannot be compared on, naming the sample, and needs that the pair was not made for.
        """
        needs = self.needs if needs is None else needs
        if unknown := needs - self.needs:
            raise ValueError(
                f"the pair was not made for {', '.join(sorted(map(str, unknown)))}: name it in its `needs`"
            )
        sites = frozenset(need for need in needs if isinstance(need, Site))
        switched = frozenset(site for site in sites if isinstance(site, Switched))
        weights = next((need for need in needs if isinstance(need, VisualWeights)), None)
        inputs, reader, crossing = batch.student, self._reader(batch) if "teacher" in needs else None, self.crossing
        seen = self.student.see(inputs)  # V_S(x)
        student_sites = frozenset(site for site in sites - switched if not site.teacher_alone)
        student, captured = _say(self.student, seen, inputs, student_sites)  # L_S(P_S(V_S(x)), t)
        logits = FromHidden(student, self.student.head)
        signals = Signals(logits, inputs.targets, inputs.sample, batch.keys, compared={}, activations={})
        if reader is None:
            return signals
        cached = batch.shared[TEACHER].stored is not None
        if cached and not sites and weights is None:  # a cache has what the teacher says
            switch = self._switch(self.cross(seen, batch), reader)[0] if "switch" in needs else None
            return replace(signals, compared={TEACHER: self._compared(None, switch, batch)})
        if any("tokenizer" in site.alike for site in sites) and reader is not inputs:
            _check_same_text(self.student, self._live, inputs, reader, batch.keys)
        reader = crossing.over(reader)
        with torch.no_grad(), crossing.precision():
            teacher, of_teacher = _say(self._live, self._live.see(reader), reader, sites)  # L_T(P_T(V_T(x)), t)
            blurred = None if weights is None else without_detail(self._live, reader, weights.detail)
        crosses = "switch" in needs or any(site.bridged for site in sites)
        crossed = self.cross(seen, batch) if crosses else None  # V_S(x), or B(V_S(x))
        switch, of_switch = None, dict[Site, list[Tensor]]()
        if "switch" in needs:  # the teacher's answers about what the student sees
            switch, of_switch = self._switch(crossed, reader, switched)  # L_T(P_T(V_S(x)), t): the visual switch
        elif switched:  # the same, as far as its states are compared
            _, of_switch = self._switch(crossed, reader, switched, max(site.layers for site in switched))
        compared = self._compared(crossing.back(teacher), switch, batch)
        if weights is not None:
            without = self._compared(crossing.back(blurred), None, batch)
            shows = crossing.back(shows_something(self._live, reader))
            compared = weighed(compared, without, inputs.sample, shows, weights)
        signals = replace(signals, compared={TEACHER: compared})
        if not sites:
            return signals
        of_student = of_samples(captured, student_sites) | of_switch
        if self.bridge is not None:  # what crosses the bridge lies where the teacher's own does
            over, bridged = (
                replace(of_teacher, features=crossing.over(crossed)),
                [s for s in sites - switched if s.bridged],
            )
            of_student |= crossing.back({site: site.of_samples(over) for site in bridged})
        heads = self.shared.cut_student(self.student.head), self.shared.cut_teacher(self._head)
        both = Activations(of_student, crossing.back(of_samples(of_teacher, sites)), *heads, batch.keys)
        return replace(signals, activations={TEACHER: both})

    @torch.no_grad()
    def teacher_says(self, batch: Batch) -> Compared:
        """The teacher's distributions where they are compared, without the student: what a cache is filled with."""
        reader = self._reader(batch)
        assert reader is not None, "a method without a teacher has nothing to ask it"
        reader = self.crossing.over(reader)
        with self.crossing.precision():
            said = self._live.say(self._live.see(reader), reader)
        return self._compared(self.crossing.back(said), None, batch)

    @property
    def _live(self) -> Pathway:
        """The teacher itself."""
        if self.teacher is None:
            raise ValueError(
                "the batch has nothing of the teacher's cache, and of the teacher there is the head alone: give the `Collator` the "
                "store, or the pair the whole teacher"
            )
        return self.teacher

    @property
    def _head(self) -> Head:
        teacher = self.teacher_head or self.teacher
        assert teacher is not None
        return teacher.head

    def _switch(
        self,
        crossed: Features | None,
        reader: Inputs,
        sites: frozenset[Switched] = frozenset(),
        layers: int | None = None,
    ) -> tuple[Tensor, dict[Site, list[Tensor]]]:
        """L_T(P_T(V_S(x)), t), hidden states where the student is, and what is looked at on the way; through so many layers alone."""
        with self.crossing.precision(), self._live.first_layers(layers):
            said, captured = _say(self._live, self.crossing.over(crossed), self.crossing.over(reader), sites)
        return self.crossing.back(said), self.crossing.back(of_samples(captured, sites))

    def _reader(self, batch: Batch) -> Inputs | None:
        """What the teacher reads; None where the method has no teacher."""
        if "teacher" not in self.needs:
            return None
        if TEACHER not in batch.readers:
            raise ValueError(
                "the batch has nothing for the teacher to read: make it with a `Collator` that is given the teacher's reading, "
                "`Collator(Reader(processor), {TEACHER: …})`"
            )
        reader = batch.readers[TEACHER]
        if reader is batch.student and self.separate_inputs:
            raise ValueError(
                f"student and teacher differ in {self.separate_inputs[0]}, so each must read its own images and text: give the `Collator` "
                "a `Reader` of the teacher's own processor"
            )
        return reader

    def _compared(self, teacher: Tensor | None, switch: Tensor | None, batch: Batch) -> Compared:
        """What is compared, first words included. `teacher`: its hidden states at its answers; None: what the batch has of a cache."""
        compared = self._over(self.shared, batch.shared[TEACHER], teacher, switch)
        if TEACHER not in batch.first_words:
            return compared
        if self.first_words is None:
            raise ValueError(
                "the batch has first words whose space one model alone reads with them, and the pair was not told which ids these are: "
                "give it `first_words`, the ids that the teacher's reading was given"
            )
        return replace(compared, first_words=self._over(self.first_words, batch.first_words[TEACHER], teacher, switch))

    def _over(
        self, vocabulary: Vocabulary, aligned: Aligned, teacher: Tensor | None, switch: Tensor | None
    ) -> Compared:
        head, size = vocabulary.head(self._head), vocabulary.size
        of_teacher: Logits
        if teacher is not None:
            of_teacher = FromHidden(_chosen(teacher, aligned.reader), head, size)
        elif isinstance(aligned.stored, TopLogits):
            of_teacher = FromTopLogits(aligned.stored, size)
        else:
            assert aligned.stored is not None
            of_teacher = FromHidden(aligned.stored, head, size)
        of_switch = None if switch is None else FromHidden(_chosen(switch, aligned.reader), head, size)
        return Compared(of_teacher, size, aligned.targets, of_switch, aligned.student, vocabulary.ids, aligned.places)

    # ---- the bridge

    def cross(self, seen: Features | None, batch: Batch) -> Float[Tensor, "*teacher_tokens teacher_width"] | None:
        """What the teacher's projector receives of V_S(x): B(V_S(x)), laid out as V_T(x) is; V_S(x) itself without a bridge."""
        if seen is None or self.bridge is None:
            return seen
        assert self.teacher is not None
        family = self.teacher.family
        student_media, teacher_media = self.student.media(batch.student), self.teacher.media(batch.readers[TEACHER])
        assert student_media is not None
        assert teacher_media is not None
        grids, shapes = self.student.family.to_grids(seen, student_media), family.grid_shapes(teacher_media)
        if len(grids) != len(shapes):
            raise ValueError(
                f"the student sees {len(grids)} pictures in this batch and the teacher {len(shapes)}: they cut images into tiles "
                "differently. Make both image processors cut as many tiles, or choose a method in which no features go from one to the "
                "other (of switch_kd: `switch: 0`)"
            )
        return family.from_grids(self.bridge(grids, shapes), teacher_media)

    @torch.no_grad()
    def fit_bridge(self, batches: Iterable[Batch]) -> float:
        """Fit the bridge to V_T(x) by least squares; returns the share of its variance that the student's features explain."""
        assert self.bridge is not None
        training = self.student.training
        self.student.eval()
        explained = self.bridge.fit(self._examples(batches))
        self.student.train(training)
        return explained

    def feature_importance(self, batches: Iterable[Batch]) -> Float[Tensor, " width"]:
        """How much each channel of V_T(x) matters to what the teacher says about these batches (`pairing.fisher`)."""
        return feature_fisher(self._live, (self.crossing.over(batch.readers[TEACHER]) for batch in batches))

    def _examples(self, batches: Iterable[Batch]) -> Iterator[tuple[list[FeatureGrid], list[FeatureGrid]]]:
        assert self.teacher is not None
        for batch in batches:
            pathways = ((self.student, batch.student), (self.teacher, self.crossing.over(batch.readers[TEACHER])))
            seen = [(pathway, pathway.see(inputs), inputs.shown) for pathway, inputs in pathways]
            grids = [
                pathway.family.to_grids(features, media)
                for pathway, features, media in seen
                if features is not None and media is not None
            ]
            if len(grids) == 2:
                yield grids[0], grids[1]

    def train(self, mode: bool = True) -> "Pair":
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        self.student.train(mode)  # also where another module has it
        if self.teacher is not None:
            self.teacher.eval()
        return self


def _say(pathway: Pathway, seen: Features | None, inputs: Inputs, sites: frozenset[Site]) -> tuple[Tensor, Capture]:
    """What a pathway says about what is seen, and what the method looks at inside it."""
    with capture(pathway, seen, inputs, sites) as captured:
        hidden = pathway.say(seen, inputs)
    return hidden, captured


def _check_same_text(
    student: Pathway, teacher: Pathway, student_inputs: Inputs, teacher_inputs: Inputs, keys: tuple[str, ...]
) -> None:
    """Raise ValueError unless both models read the same text in every sample."""
    texts = [
        list(inputs.tokens[read.positions("text")].split(read.counts("text")))
        for inputs in (student_inputs, teacher_inputs)
        for read in [Capture(student if inputs is student_inputs else teacher, inputs, None)]
    ]
    for key, student_text, teacher_text in zip(keys, *texts, strict=True):
        if not torch.equal(student_text, teacher_text):
            raise ValueError(
                f"sample {key!a} is {len(student_text)} tokens of text for the student and {len(teacher_text)} others for the teacher, and "
                "the method compares all of them one by one: give both models one tokenizer and chat template, or choose a method that "
                "compares answers"
            )


def _chosen(hidden: Float[Tensor, "answers hidden"], places: Int[Tensor, " compared"] | None) -> Tensor:
    return hidden if places is None else hidden.index_select(0, places)


def check_compatible(
    student: Pathway,
    teacher: Pathway | TeacherHead | None,
    needs: frozenset[Route | Site | VisualWeights],
    *,
    bridged: bool = False,
) -> list[compatibility.Difference]:
    """Raise ValueError, with both numbers, if `teacher` cannot teach `student` what is in `needs`.

    Returns:
        What differs so that each model must read its own images and text.
    """
    if not needs - {"student"}:
        return []
    if teacher is None:
        routes = sorted(need for need in needs if isinstance(need, str))
        raise ValueError(f"the method needs the routes {', '.join(routes)}, but there is no teacher")
    inside = sorted(map(str, needs - {"student", "teacher"}))
    if inside and isinstance(teacher, TeacherHead):
        raise ValueError(
            f"the method needs the teacher itself ({', '.join(inside)}), and there is its head alone: load it whole"
        )
    differences = compatibility.compare(student.family, teacher.family)
    compatibility.raise_if_incompatible(differences, needs, bridge=bridged)
    compatibility.check_layers(needs, teacher.family)
    vision = student.part_parameters("vision").values()
    what = learned_by_vision_alone(needs)
    if what and not any(parameter.requires_grad for parameter in vision):
        raise ValueError(
            f"the student's vision encoder is frozen (0 of {sum(p.numel() for p in vision)} parameters train) and {what} trains nothing "
            "else: add vision to the stage's `train`, or choose another method (for the switch: `switch: 0`)"
        )
    return [difference for difference in differences if difference.separate_inputs]
