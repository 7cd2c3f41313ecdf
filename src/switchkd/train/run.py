"""Run the stages of a recipe, one Trainer each, and leave a student behind."""

import json
import logging
import math
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import (
    AutoModelForImageTextToText,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from switchkd.agree import on_main
from switchkd.console import say
from switchkd.data.processor_files import save_processor
from switchkd.files import copy_file, naming_full_disks, replace_folder, write_together
from switchkd.interrupts import caught
from switchkd.manifest import read_manifest, write_manifest
from switchkd.models.layers import compile_layers
from switchkd.models.run_folder import STUDENT
from switchkd.processes import processes
from switchkd.recipe.schema import Recipe, ResolvedStage, data_names, recipe_to_dict
from switchkd.recipe.trainer_arguments import UPLOAD
from switchkd.train import checkpoint
from switchkd.train.best import check_whole, described, evaluation_arguments, stopped_early
from switchkd.train.checkpoint import CARD
from switchkd.train.context import RunContext, StageContext
from switchkd.train.held_out import HeldOut
from switchkd.train.launch import check_accelerator
from switchkd.train.model_card import model_card
from switchkd.train.origin import ORIGIN, check_origin, origin_of
from switchkd.train.peak import find_peak
from switchkd.train.precision import HALF
from switchkd.train.progress import Progress
from switchkd.train.stage import open_run, open_stage, total_steps
from switchkd.train.stop import StopAtStepEnd
from switchkd.train.stream_loader import EpochOfStream
from switchkd.train.student_answers import StudentAnswers, StudentWriter
from switchkd.train.teachers import Teachers
from switchkd.train.trainer import DistillationTrainer
from switchkd.train.what_ran import headline, what_ran

_log = logging.getLogger(__name__)


def train_stage(context: StageContext, *, accept_changes: bool = False) -> None:
    """Train one stage to its end, from its newest sound checkpoint if there is one.

    The metrics of every logged step go to `metrics.jsonl` and TensorBoard in the stage's folder.

    Raises:
        ValueError: if there is no step to take, or the stage would go on from other rows, weights or processes than its checkpoint, and
            not `accept_changes`.
        Interrupted: if a signal came; the run is saved first.
        FloatingPointError: if the loss or the gradient is not finite; no update is made with it.
    """
    steps = total_steps(context)
    if steps < 1:
        raise ValueError(
            f"stage {context.stage.name}: {context.told_rows} make {steps} steps: nothing would be trained"
        )
    train = context.run.recipe.train
    if train.torch_compile:
        teachers = [pair.teacher for pair in context.step.pairs.values() if pair.teacher is not None]
        for pathway in [context.pair.student, *teachers]:
            compile_layers([*pathway.part("vision"), *pathway.part("language")], backend=train.torch_compile_backend)
    origin = on_main(lambda: origin_of(context))
    stop = StopAtStepEnd()
    trainer = DistillationTrainer(
        context.step,
        arguments(context),
        rates=context.stage.learning_rates.given(),
        processor=context.run.processor,
        card="",
        files={ORIGIN: json.dumps(origin, indent=1)},
        train_dataset=context.stream or context.drawn,
        held_out=context.held_out,
        answering=_answering(context),
        data_collator=context.collate,
        held_out_collator=context.collator,
        callbacks=[MetricsFile(context.directory / "metrics.jsonl"), stop],
    )
    if train.torch_compile:
        from switchkd.train.compile_time import CompileTime  # torch's compiler takes a second to import

        trainer.add_callback(CompileTime())
    if train.early_stopping:
        trainer.add_callback(EarlyStoppingCallback(train.early_stopping))
    check_accelerator(trainer.accelerator, train)
    check_whole(trainer, context.run.recipe)
    ran = what_ran(trainer, context.step, stage=context.stage.name, steps=steps)
    if processes().is_main_process:
        say(headline(trainer))
        say("; ".join(f"{name}: {value}" for name, value in ran.items() if name not in ("processes", "software")))
        if (held_out := described(context, steps)) is not None:
            say(held_out)
    trainer.card = _card(context, ran)
    trainer.speed.peak = find_peak(trainer.args.device)
    trainer.add_callback(Progress(context.stage.name, trainer.terms, trainer.speed))
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    newest = on_main(lambda: checkpoint.resume_point(context.directory))
    if newest is not None:
        state = TrainerState.load_from_json(str(newest / checkpoint.STATE))
        done, finished = state.global_step, state.global_step >= steps or stopped_early(state)
        check_origin(newest, origin, finished=finished, accept_changes=accept_changes)
        if not finished:
            newest = on_main(lambda: checkpoint.point_to_go_on_from(context.directory, steps))
            done = checkpoint.steps_taken(newest)
        _log.info("stage %s: resuming from %s, step %d of %d", context.stage.name, newest, done, steps)
        if finished:
            checkpoint.load(context.step, _kept(context))
            return
        if context.stream is not None:
            context.stream.go_on(newest)
            trainer.add_callback(EpochOfStream())
    with caught(stop.note):
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        stop.raise_if_stopped(trainer.args, context.stage.name, trainer.state)
    context.step.unmask()
    if stopped_early(trainer.state):
        if processes().is_main_process:
            say(
                f"stage {context.stage.name} ends early, after step {trainer.state.global_step} of {steps}: "
                f"{train.metric_for_best_model} on held-out rows was no better {train.early_stopping} times in a row"
            )
    elif trainer.state.global_step < steps:
        raise RuntimeError(f"stage {context.stage.name} ended after {trainer.state.global_step} of {steps} steps")


#: A stage, its folder, and its rows and held-out rows.
Indexed = tuple[ResolvedStage, Path, Dataset, HeldOut | None]


def reopened(recipe: Recipe, finished: Sequence[Indexed]) -> RunContext:
    """The models of a run behind its finished stages, from their files."""
    run = open_run(recipe)
    for stage, directory, _, _ in finished:  # of each teacher's bridge the last that learned
        folder = _kept_in(directory, recipe)
        for tag, teacher in run.teachers.by_tag(stage).items():
            name = f"bridge.{tag}" if stage.tagged else "bridge"
            if teacher.bridge is not None and (folder / checkpoint.auxiliary_file(name)).exists():
                checkpoint.load_auxiliary({name: teacher.bridge}, folder)
    context = open_stage(run, *finished[-1])  # what learned is float32
    checkpoint.load(context.step, _kept(context))
    return run


def arguments(context: StageContext) -> TrainingArguments:
    """The Trainer's arguments for a stage."""
    train, stage = context.run.recipe.train, context.stage
    values: dict[str, Any] = {
        name: getattr(train, name)
        for name in (
            "lr_scheduler_type", "weight_decay", "max_grad_norm", "bf16", "fp16", "seed", "logging_steps", "save_steps",
            "save_total_limit", "dataloader_num_workers",
        )
    }  # fmt: skip
    values |= {
        name: getattr(stage, name)
        for name in (
            "num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
        )
    }  # fmt: skip
    steps = total_steps(context)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.directory / "tensorboard")
    warmup = train.arguments.get("warmup_steps", train.warmup_ratio)  # below 1, a share of all steps
    made = TrainingArguments(
        output_dir=str(context.directory),
        report_to=list(train.report_to),
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        train_sampling_strategy="group_by_length" if train.group_by_length else "random",
        ignore_data_skip=context.stream is not None,  # it goes on by itself
        ddp_find_unused_parameters=False,  # every rank runs every part, on a blank image where it has none (models/pathway.py)
        use_cpu=processes().device.type == "cpu",  # without it the Trainer refuses bf16 there
        **evaluation_arguments(context, steps),
        **{"dataloader_pin_memory": context.pair.student.model.device.type == "cuda"}
        | values
        | {name: value for name, value in train.arguments.items() if name not in UPLOAD}
        # a warm-up begins at a rate of 0: the last step is never part of it, or a single one would train nothing
        | {"warmup_steps": min(math.ceil(warmup * steps if warmup < 1 else warmup), steps - 1)},
    )
    made.load_best_model_at_end = (
        train.load_best_model_at_end
    )  # given above, save_steps would have to be a multiple of eval_steps
    made._n_gpu = min(made.n_gpu, 1)  # or the Trainer spreads larger batches than the recipe's over all GPUs
    return made


def _answering(context: StageContext) -> StudentAnswers | None:
    """Has the student answer a share of the rows, where the recipe wants that and the stage has a teacher to learn from at its answers."""
    settings, run = context.run.recipe.on_policy, context.run
    if settings is None or context.pair.teacher is None:
        return None
    write = StudentWriter(run.student.model, run.reader, settings)
    return StudentAnswers(settings, context.collator, write, seed=run.recipe.train.seed)


def save_result(context: StageContext, output: Path) -> Path:
    """Write the finished student to `<output>/student`, complete or not at all.

    Its checkpoints are as wide as what learned; the student is in the precision of the checkpoint that it began as, or in the recipe's.
    """
    target = output / STUDENT
    dtype = context.run.student_dtype

    def save() -> None:
        newest = _kept(context)
        sums, narrowed = read_manifest(newest), dtype in HALF
        with replace_folder(target) as folder:
            save_processor(context.run.processor, folder)
            copied = [name for name in sums if _is_students(name) and not (narrowed and name != CARD)]
            for name in copied:
                copy_file(newest / name, folder / name)
            if narrowed:
                narrow: Any = AutoModelForImageTextToText.from_pretrained(newest, dtype=dtype, use_safetensors=True)
                narrow.save_pretrained(folder)
            # the results are added to the card
            write_manifest(folder, without=(CARD,), known={name: sums[name] for name in copied})

    on_main(save)
    return target


def _kept(context: StageContext) -> Path:
    """The checkpoint that a finished stage ends with."""
    return _kept_in(context.directory, context.run.recipe)


def _kept_in(directory: Path, recipe: Recipe) -> Path:
    kept = checkpoint.kept(directory, best=recipe.train.load_best_model_at_end)
    assert kept is not None, "a finished stage has a checkpoint"
    return kept


def _is_students(name: str) -> bool:
    """Whether a file of a checkpoint is the model's or its card, and does not serve resuming only."""
    return any(fnmatch(name, pattern) for pattern in _STUDENT)


#: What of a checkpoint is in the finished student; its processor is written anew.
_STUDENT = (CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


def _card(context: StageContext, ran: dict[str, str]) -> str:
    recipe = context.run.recipe
    stages = recipe.resolved_stages()
    return model_card(
        recipe_yaml=yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True),
        student=recipe.student.path,
        teachers=[known.section.path for known in context.run.teachers],
        tags={tag: one.path for tag, one in recipe.teachers.items()},
        methods=list(dict.fromkeys(stage.method.label for stage in stages)),
        data=list(dict.fromkeys(name for stage in stages for name in data_names(stage.data))),
        template=context.run.reader.format.described,
        dtype=str(context.run.student_dtype).removeprefix("torch."),
        mismatches=_mismatches(context.run.teachers),
        ran=ran,
        continued=None if context.run.continued is None else context.run.continued.described,
    )


def _mismatches(teachers: Teachers) -> list[str]:
    """In what the student differs from each of its teachers; of several, with the name of each."""
    lines = []
    for known in teachers:
        named = f"{known.section.path}: " if len(teachers) > 1 else ""
        differences = [] if known.report is None else known.report.mismatches
        lines += [f"{named}{difference}: {difference.verdict}" for difference in differences]
    return lines


class MetricsFile(TrainerCallback):
    """Appends every log line to a JSONL file; a resumed run drops the lines after its checkpoint first, and those that cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the lines up to the step that is resumed from."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = []
        lines = self.path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
        for number, line in enumerate(lines, start=1):
            step = _step(line)
            if step is None:
                _log.warning("%s, line %d: left half-written by a process that was killed, dropped", self.path, number)
            elif step <= state.global_step:
                kept.append(f"{line}\n")
        write_together({self.path: "".join(kept)})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            with naming_full_disks(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _step(line: str) -> int | None:
    """The step of a line of metrics, or None where it is no such line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if isinstance(step, int) else None
