"""From a recipe to a student: doctor, stages, evaluation, model card."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedModel, ProcessorMixin

from switchkd.agree import on_main
from switchkd.console import say
from switchkd.data.sources import Data
from switchkd.doctor import examine_stage
from switchkd.evaluate import Results, evaluate_model, load_questions
from switchkd.evaluate.generate import load
from switchkd.evaluate.questions import check_share
from switchkd.evaluate.scoring import choose_metrics
from switchkd.given import Given, Model
from switchkd.methods import Method
from switchkd.processes import processes, sharded
from switchkd.recipe.packages import check_packages
from switchkd.recipe.schema import Data as Rows
from switchkd.recipe.schema import Evaluate, Recipe, Student, Teacher, build_recipe
from switchkd.results.metrics import parse_metrics
from switchkd.train.context import StageContext
from switchkd.train.in_memory import why_reloaded
from switchkd.train.model_card import add_results
from switchkd.train.output import open_output
from switchkd.train.run import reopened, save_result, train_stage
from switchkd.train.run_log import RUN_LOG, kept_log
from switchkd.train.stage import index_held_out, index_rows, open_run, open_stage
from switchkd.train.upload import prepare_upload, upload


@dataclass(frozen=True)
class Distilled:
    """What a run leaves: a student, and what it answered."""

    #: The finished student's, `<output>/student`: a checkpoint of plain transformers. Its parent is the run's folder.
    folder: Path
    #: Its answers to the recipe's questions, in every process; None where it asks none.
    results: Results | None

    @cached_property
    def student(self) -> PreTrainedModel:
        """The finished student, opened when it is first asked for, on the GPU if there is one."""
        return self._opened[0]

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The student's processor."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        return load(self.folder)


@overload
def distill(student: Recipe, /, *, resume: bool = True, accept_changes: bool = False) -> Distilled: ...


@overload
def distill(
    student: Model | Student,
    teacher: Model | Teacher | None,
    data: Data | Rows,
    *,
    output: str | PathLike[str],
    method: Method | str = "switch_kd",
    processor: ProcessorMixin | None = None,
    teacher_processor: ProcessorMixin | None = None,
    evaluate: Data | Evaluate | None = None,
    resume: bool = True,
    accept_changes: bool = False,
    **train: Any,
) -> Distilled: ...


def distill(
    student: Recipe | Model | Student,
    teacher: Model | Teacher | None = None,
    data: Data | Rows | None = None,
    *,
    output: str | PathLike[str] | None = None,
    method: Method | str = "switch_kd",
    processor: ProcessorMixin | None = None,
    teacher_processor: ProcessorMixin | None = None,
    evaluate: Data | Evaluate | None = None,
    resume: bool = True,
    accept_changes: bool = False,
    **train: Any,
) -> Distilled:
    """Distil a student: `distill(student, teacher, data, output=…)`, or `distill(recipe)`, which says all of it.

    The run's folder holds `recipe.yaml` (resolved), `train.log` with all that was told, for each stage a folder with checkpoints,
    `metrics.jsonl` and TensorBoard files, `results.json` where questions are asked, and `student`. Models and rows in memory are
    written into its folder `given` and read from there, so that the run can be resumed and repeated; what was given stays as it is.
    Where a teacher is too large for that, give its path.

    Args:
        student: a recipe, and then nothing else but the last two; or a checkpoint directory, a name on the hub, or a model in memory.
        teacher: likewise; None for a method without one.
        data: anything `load_rows` reads, rows in memory among it.
        output: the run's folder.
        method: a method, such as `SwitchKD(switch=0.5)`, or the name of one.
        processor: of the models in memory.
        teacher_processor: of a teacher in memory, where it is another than the student's.
        evaluate: questions that the student is asked at the end: anything `load_rows` reads.
        resume: go on from the last checkpoint in `<output>`, if there is one.
        accept_changes: go on even where rows, teacher, start weights or processes are others than those of that checkpoint.
        train: fields of the recipe's section `train`, such as `learning_rate=1e-5` or `max_steps=1000`. For more of another section, give
            the section: `Student(path, lora=LoRA())`, `Data(file, max_length=2048)`.

    Raises:
        Interrupted: a signal came during training, which has been saved.
        DataError, ValueError, TypeError: what cannot be run, before anything is trained.
        FloatingPointError: if the loss or the gradient is not finite.
    """
    if isinstance(student, Recipe):
        others = (teacher, data, output, processor, teacher_processor, evaluate)
        if train or method != "switch_kd" or any(other is not None for other in others):
            raise TypeError(
                "a recipe says all of a run: change its fields, dataclasses.replace(recipe, …), or give a student, a teacher and data"
            )
        return _run(student, Given(Path(student.train.output)), resume=resume, accept_changes=accept_changes)
    if data is None or output is None:
        raise TypeError(
            f"distill needs {'data' if data is None else 'output, the folder of the run'}: distill(student, teacher, data, output=…)"
        )
    given = Given(Path(output))
    if isinstance(teacher, PreTrainedModel):
        teacher_processor = teacher_processor or processor
        processor = processor if isinstance(student, PreTrainedModel) else None
    sections: dict[str, Any] = {
        "student": student
        if isinstance(student, Student)
        else {"path": given.name_model("student", student, processor)},
        "method": method,
        "data": data if isinstance(data, Rows) else {"train": given.name_rows("train", data)},
        "train": {"output": output, **train},
    }
    if isinstance(teacher, Teacher):
        sections["teacher"] = teacher
    elif teacher is not None:
        sections["teacher"] = {"path": given.name_model("teacher", teacher, teacher_processor)}
    if isinstance(evaluate, Evaluate):
        sections["evaluate"] = evaluate
    elif evaluate is not None:
        sections["evaluate"] = {"data": given.name_rows("questions", evaluate)}
    return _run(build_recipe(sections, "distill"), given, resume=resume, accept_changes=accept_changes)


def _run(recipe: Recipe, given: Given, *, resume: bool, accept_changes: bool) -> Distilled:
    check_packages(recipe)
    if recipe.evaluate and not given.rows:  # what cannot be asked at the end must not show hours later
        _look_at_questions(recipe.evaluate)
    with (
        open_output(recipe, resume=resume) as output,
        kept_log(output / RUN_LOG if processes().is_main_process else None),
    ):
        on_main(lambda: given.write(recipe.data.max_bad_fraction))
        if recipe.evaluate and given.rows:
            _look_at_questions(recipe.evaluate)
        return _distill(recipe, output, accept_changes=accept_changes)


def _look_at_questions(asked: Evaluate) -> None:
    samples, found, bad = load_questions(asked.data, asked.image_root, asked.max_bad_fraction, asked.columns)
    _, unscorable = choose_metrics(found, parse_metrics(asked.metric))
    check_share([*bad, *unscorable], len(samples), asked.max_bad_fraction)


def _distill(recipe: Recipe, output: Path, *, accept_changes: bool) -> Distilled:
    on_main(lambda: prepare_upload(recipe))
    run = open_run(recipe)
    indexed = []
    for number, stage in enumerate(recipe.resolved_stages(), start=1):
        # before the first trains: a missing file of the last must not show hours later
        folder = output / f"{number}-{stage.name}"
        indexed.append((stage, folder, index_rows(run, stage, folder), index_held_out(run, stage, folder)))
    for number, (stage, folder, rows, held_out) in enumerate(indexed):
        if number and sharded():
            # what was spread over processes stays so, and cannot be spread anew
            run = reopened(recipe, indexed[:number])
        context = open_stage(run, stage, folder, rows, held_out)
        findings = examine_stage(context)
        if processes().is_main_process:
            findings.tell()
        findings.raise_if_failed()
        train_stage(context, accept_changes=accept_changes)
        if number + 1 < len(indexed):
            del context  # it holds the teacher, which makes room for the next one
    student = save_result(context, output)
    results = None if recipe.evaluate is None else _evaluated(context, recipe.evaluate, student)
    if processes().is_main_process:
        upload(recipe, student)
        say(f"the student is in {student}")
    return Distilled(student, results)


def _evaluated(context: StageContext, asked: Evaluate, student: Path) -> Results:
    """What the student answers to the recipe's questions, each process asking its share; its card says how well."""
    reason = why_reloaded(context, asked.dtype)
    if processes().is_main_process:
        say(f"the student is asked as it is {f'on the disk: {reason}' if reason else 'in memory'}")
    results = evaluate_model(
        context.run.student.model if reason is None else student,
        asked.data,
        processor=context.run.processor if reason is None else None,
        name=str(student),
        image_root=asked.image_root,
        columns=asked.columns,
        batch_size=asked.batch_size,
        max_new_tokens=asked.max_new_tokens,
        max_bad_fraction=asked.max_bad_fraction,
        metrics=parse_metrics(asked.metric),
        dtype=asked.dtype,
        output=student.parent / "results.json",
        share=True,
    )
    on_main(lambda: add_results(student, results.percentages(), data=asked.data, metric=results.scored_by))
    return results
