"""What a finished run's models make of held-out questions, for its report: knees, agreement with the teacher, attention, images.

Nothing is trained. The expected answers are read along, so teacher, student and switch are compared at the same answer tokens.
"""

import io
import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.formats import load_rows
from switchkd.data.images import open_image
from switchkd.evaluate.attention import attention_maps
from switchkd.evaluate.questions import Question, prompt, questions
from switchkd.losses import knee
from switchkd.methods import SFT, SwitchKD
from switchkd.models.run_folder import STUDENT
from switchkd.pairing import Pair
from switchkd.recipe.schema import Data, Recipe, Stage, data_names, load_recipe
from switchkd.report.evidence import PATHWAYS, Agreement, Probe
from switchkd.results.question_results import Prediction
from switchkd.results.score import is_right
from switchkd.signals import Route
from switchkd.train import checkpoint
from switchkd.train.stage import open_run
from switchkd.train.teacher_device import device_of

#: Longest side of an image that is handed on, in pixels.
SIDE = 448
_BATCH = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The test questions of a report, read once for all its runs."""

    samples: Dataset
    questions: dict[str, Question]

    def sample(self, name: str, *, answered: bool = True) -> dict[str, Any]:
        """The question alone with its images, and the expected answer behind it."""
        question = self.questions[name]
        sample = prompt(self.samples[question.sample], question.turn)
        answer = {"role": "assistant", "content": [{"type": "text", "text": question.expected}]}
        return {**sample, "id": name, "messages": [*sample["messages"], answer] if answered else sample["messages"]}


def read_questions(
    data: str | Path,
    image_root: str | Path | None = None,
    left_out: Collection[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Asked:
    """The questions of a data set, without those that an evaluation could not ask.

    Raises:
        DataError: if it cannot be read.
    """
    samples = load_rows(data, image_root, columns)
    asked, _ = questions(samples)
    return Asked(samples, {question.id: question for question in asked if question.id not in left_out})


def spread(asked: Mapping[str, Question], count: int) -> list[str]:
    """`count` questions, every kind as often as the others, those of a kind evenly over the data."""
    kinds: dict[str | None, list[str]] = {}
    for name, question in asked.items():
        kinds.setdefault(question.kind, []).append(name)
    share = -(-count // len(kinds))
    spaced = [
        [names[i * len(names) // share] for i in range(share)] if len(names) > share else names
        for names in kinds.values()
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*spaced))
    return [name for name in turns if name is not None][:count]


def pictures(asked: Asked, names: Sequence[str]) -> dict[str, bytes]:
    """Question → its first image, small, as PNG; without those that have none."""
    pngs = {}
    for name in names:
        if name in asked.questions and (images := asked.samples[asked.questions[name].sample]["images"]):
            image = open_image(images[0]).convert("RGB")
            image.thumbnail((SIDE, SIDE))
            file = io.BytesIO()
            image.save(file, "PNG")
            pngs[name] = file.getvalue()
    return pngs


def agreeing(student: Mapping[str, Prediction], teacher: Mapping[str, Prediction]) -> dict[str, Prediction]:
    """The student's answers, `right` where they are the teacher's, whatever they scored; compared as by exact match."""
    both = [name for name in student if name in teacher]
    return {
        name: replace(student[name], right=is_right(teacher[name].got, student[name].got), score=None) for name in both
    }


def same_answers(agreed: Mapping[str, Prediction]) -> dict[str | None, float]:
    """Kind → share of the questions to which both gave the same answer, in percent; None: of all."""
    marks: dict[str | None, list[bool]] = {None: []}
    for answer in agreed.values():
        marks[None].append(answer.right)
        if answer.kind is not None:
            marks.setdefault(answer.kind, []).append(answer.right)
    return {kind: 100 * sum(same) / len(same) for kind, same in marks.items() if same}


def probe(run: Path, asked: Asked, counted: Sequence[str], shown: Sequence[str]) -> Probe:
    """Knees and agreement on the questions `counted`, attention on those `shown`.

    What cannot be had (a student that was not kept, no teacher, a switch that does not fit) is a note in the result, never an error.
    """
    student = run / STUDENT
    if not student.is_dir():
        return Probe(notes=(f"{STUDENT}/ was not kept: train again, a study with keep_students: true",))
    try:
        recipe = load_recipe(run / "recipe.yaml")
        if recipe.last_teacher is None:
            return _compute(
                recipe,
                run,
                asked,
                counted,
                shown,
                {"student"},
                ("the recipe names no teacher, so there is nothing to compare with",),
            )
        try:
            return _compute(recipe, run, asked, counted, shown, {"student", "teacher", "switch"}, _which(recipe))
        except _NoSwitchError as reason:
            notes = (*_which(recipe), f"there is no switch: {reason}")
            return _compute(recipe, run, asked, counted, shown, {"student", "teacher"}, notes)
    except (ValueError, OSError) as error:
        return Probe(notes=(f"the models could not be used: {error}",))


def _which(recipe: Recipe) -> tuple[str, ...]:
    """A note where it is not plain which teacher is meant."""
    tags = next((list(stage.tagged) for stage in reversed(recipe.resolved_stages()) if stage.by_teacher), [])
    return (f"of the teachers {', '.join(tags)} the first is compared with",) if len(tags) > 1 else ()


class _NoSwitchError(Exception):
    """The student's features do not fit the teacher's projector."""


def _compute(
    recipe: Recipe,
    run: Path,
    asked: Asked,
    counted: Sequence[str],
    shown: Sequence[str],
    needs: set[Route],
    notes: tuple[str, ...],
) -> Probe:
    knobs = _knobs(recipe)
    pair, collator = _open(recipe, run, frozenset(needs))
    device = pair.student.head.weight.device
    knees: dict[str, list[int]] = {who: [] for who in PATHWAYS if who in needs}
    distances: dict[str, list[Tensor]] = {
        who: [] for who in ("student", "switch") if who in needs and "teacher" in needs
    }
    tokens = 0
    for begin in range(0, len(counted), _BATCH):
        batch = collator([asked.sample(name) for name in counted[begin : begin + _BATCH]]).to(device)
        with torch.no_grad():
            parts = [part.logits() for part in pair(batch).parts()]
        for logits in parts:
            compared = logits.compared.get(TEACHER)
            for who, values in knees.items():
                shown_logits = logits.student if compared is None else compared.of(cast(Route, who))
                values += knee(shown_logits, window=knobs.window, min_k=knobs.min_k).tolist()
            if compared is None:
                tokens += len(logits.targets)
                continue
            for who, of_batches in distances.items():
                of_batches.append(_distances(compared.of(cast(Route, who)), compared.teacher))
            tokens += len(compared.targets)
    attention, unseen = _attention(pair, collator, asked, shown, needs)
    agreement = {
        who: Agreement(*torch.cat(of_batches).mean(dim=0).tolist())
        for who, of_batches in distances.items()
        if of_batches
    }
    return Probe(
        questions=len(counted),
        tokens=tokens,
        window=knobs.window,
        min_k=knobs.min_k,
        knees={who: tuple(values) for who, values in knees.items()},
        agreement=agreement,
        attention=attention,
        notes=(*notes, *unseen),
    )


def _knobs(recipe: Recipe) -> SwitchKD:
    """The window and the least k of the run's own method, or the defaults of Switch-KD."""
    for stage in reversed(recipe.resolved_stages()):
        method = stage.method.core
        if isinstance(method, SwitchKD):
            return method
    return SwitchKD()


def _open(recipe: Recipe, run: Path, needs: frozenset[Route]) -> tuple[Pair, Collator]:
    """The finished student and its teacher, joined as in training."""
    method = SwitchKD() if "switch" in needs else SwitchKD(switch=0) if "teacher" in needs else SFT()
    teacher = recipe.last_teacher
    finished = replace(
        recipe,
        student=replace(recipe.student, path=str(run / STUDENT), lora=None, quantization=None, freeze=()),
        teacher=None if teacher is None else replace(teacher, cache=None, cache_logits=None),
        teachers={},
        data=_untaught(recipe.data),
        method=method,
        stages=(Stage("report"),),
    )
    try:
        context, (stage,) = open_run(finished), finished.resolved_stages()
        known = context.teachers.of(stage)
        pair = Pair(
            context.student,
            context.teachers.weights_for(stage).get(TEACHER),
            needs=needs,
            vocabulary=context.reader.ids if known is None else known.vocabulary,
            first_words=None if known is None else known.first_words,
            bridge=None if known is None else known.bridge,
            teacher_device=None if teacher is None else device_of(teacher),
        ).eval()
        if pair.bridge is not None:
            last = f"{len(recipe.stages)}-{recipe.stages[-1].name}"
            newest = checkpoint.latest(run / last)
            if newest is None:
                raise ValueError(f"its bridge was in the checkpoints of {run / last}, and none is left")
            tag = next(iter(recipe.resolved_stages()[-1].tagged), None)
            checkpoint.load_auxiliary({"bridge" if tag is None else f"bridge.{tag}": pair.bridge}, newest)
    except ValueError as error:
        if "switch" in needs:
            raise _NoSwitchError(str(error)) from error
        raise
    collator = context.collator(stage)
    assert isinstance(collator, Collator)
    return pair, collator


def _untaught(data: Data) -> Data:
    """The same data, without the teachers of their rows."""
    held_out = None if data.validation is None else tuple(data_names(data.validation))
    return replace(data, train=tuple(data_names(data.train)), validation=held_out)


def _distances(logits: Float[Tensor, "n vocab"], teacher: Float[Tensor, "n vocab"]) -> Float[Tensor, "n 3"]:
    """100 where the first choices agree, KL(teacher ‖ this) and KL(this ‖ teacher) in nats, at every token."""
    student_x, teacher_x = logits.double().log_softmax(dim=-1), teacher.double().log_softmax(dim=-1)
    same = 100.0 * (student_x.argmax(dim=-1) == teacher_x.argmax(dim=-1)).double()
    forward = (teacher_x.exp() * (teacher_x - student_x)).sum(dim=-1)
    return torch.stack([same, forward, (student_x.exp() * (student_x - teacher_x)).sum(dim=-1)], dim=1)


def _attention(
    pair: Pair, collator: Collator, asked: Asked, shown: Sequence[str], needs: set[Route]
) -> tuple[dict[str, dict[str, list[list[float]]]], tuple[str, ...]]:
    """Question → pathway → map of the first image; and why there is none."""
    shown_maps: dict[str, dict[str, list[list[float]]]] = {}
    bridged = pair.bridge is not None
    device = pair.student.head.weight.device
    try:
        for name in shown:
            sample = asked.sample(name)
            if not sample["images"]:
                continue
            batch = collator([sample]).to(device)
            maps = {"student": attention_maps(pair.student, batch.student)}
            if pair.teacher is not None and "teacher" in needs:
                read = pair.crossing.over(batch.readers[TEACHER])
                maps["teacher"] = attention_maps(pair.teacher, read)
                if "switch" in needs and not bridged:
                    with torch.no_grad():
                        seen = pair.crossing.over(pair.student.see(batch.student))
                    maps["switch"] = attention_maps(pair.teacher, read, features=seen)
            shown_maps[name] = {who: maps[who][0].tolist() for who in PATHWAYS if who in maps}
    except ValueError as error:
        return {}, (f"attention cannot be shown: {error}",)
    return shown_maps, (
        "the switch's attention is not shown where a bridge lies between the models",
    ) if bridged and shown else ()
