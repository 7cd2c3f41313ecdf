"""From a recipe to stages that are ready to run: models, rows and method, checked against each other."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset
from torch import nn

from switchkd.batch import Batch
from switchkd.data.collate import Collator
from switchkd.data.formats import load_rows
from switchkd.data.index import build_index
from switchkd.data.packing import Packs
from switchkd.data.reader import Reader
from switchkd.data.streaming import RowStream
from switchkd.data.tagged import AnyCollator, TaggedCollator, taught_by
from switchkd.data.template_choice import use_format
from switchkd.data.video_sampling import sampling_of, use_sampling
from switchkd.data.weighing import weigh
from switchkd.methods import Need
from switchkd.methods.feature_weights import FeatureWeights
from switchkd.models import Pathway, load_pathway
from switchkd.models.liger import use_kernels
from switchkd.models.masking import MagnitudeMask
from switchkd.models.opening import check_files, check_weights, load_config, load_processor
from switchkd.models.packed_rows import check_packable, use_flash_attention
from switchkd.models.refusals import refuse_unreadable
from switchkd.models.teacher_head import TeacherHead
from switchkd.names import TEACHER
from switchkd.pairing import Pair
from switchkd.pairing.reading import OwnInputs
from switchkd.processes import processes, sharded
from switchkd.recipe.data_section import data_names, data_teachers, data_weights
from switchkd.recipe.schema import Recipe, ResolvedStage, Student, Teacher
from switchkd.train import lora
from switchkd.train.aligned_share import check_aligned
from switchkd.train.context import RunContext, StageContext
from switchkd.train.continued import Continued, continued
from switchkd.train.held_out import HeldOut
from switchkd.train.launch import check_launch
from switchkd.train.lengths import row_length
from switchkd.train.open_teacher import KnownTeacher, know_teacher, load_teacher, located
from switchkd.train.parts import freeze
from switchkd.train.precision import HALF, widen_learning
from switchkd.train.step import DistillationStep
from switchkd.train.stream_loader import HEAD, PATIENCE, StreamLoader
from switchkd.train.teacher_device import check_devices, device_of
from switchkd.train.teachers import Teachers

_log = logging.getLogger(__name__)

#: Batches on a GPU are as wide as a multiple of it: few widths occur, so attention is planned seldom and memory fits again.
GPU_MULTIPLE = 64


def open_run(recipe: Recipe, *, use_cache: bool = True) -> RunContext:
    """Load student, processor and the teachers of the first stage, and look at all other teachers.

    Args:
        recipe: of the run.
        use_cache: take what teachers say from their caches, where the recipe names some; their weights are then loaded as far as needed.
            Without it no teacher's weights are loaded yet.

    Raises:
        DataError: a cache that is not complete, or was made with something else.
        ValueError: if a model's family is unknown, its weights are incomplete, or teacher and student do not read the same tokens and
            pixels.
    """
    check_launch(recipe)
    check_devices(recipe)
    _check_attention(recipe)
    before = continued(recipe)
    set_seed(recipe.train.seed)
    for model in recipe.models.values():
        refuse_unreadable(located(model))
        check_files(located(model))
        if recipe.data.packing:
            check_packable(load_config(located(model)))
    processor = load_processor(located(recipe.student))
    device = processes().device
    mixed = "bfloat16" if recipe.train.bf16 else "float16" if recipe.train.fp16 else None
    student = load_pathway(
        located(recipe.student),
        dtype=recipe.student.dtype,
        attn_implementation=recipe.student.attn_implementation,
        quantization=recipe.student.quantization,
        compute_dtype=mixed,
        device=device,
    )
    dtype = student.model.dtype
    use_kernels(student, recipe.train.kernels)
    if recipe.data.packing:
        use_flash_attention(student, half=mixed is not None or dtype in HALF)
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(student, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    if recipe.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    needs = _needs_by_teacher(recipe)
    models = [student.model.config, *(load_config(located(teacher)) for teacher in needs)]
    frames = getattr(processor, "video_processor", None)
    limits: dict[str, Any] = {
        "max_length": row_length(recipe.data, *models),
        "max_pixels": recipe.data.max_pixels,
        "sampling": sampling_of(frames, recipe.data.video.fps, recipe.data.video.max_frames),
        "multiple": GPU_MULTIPLE if device.type == "cuda" else 1,
    }
    reader = Reader(processor, template=recipe.data.template, rows=student.head.rows, **limits)
    _log.info("the student reads %s ids; chat template: %s", f"{reader.ids:,}", reader.format.described)
    use_format(processor, reader.format)  # the student is asked as it was trained, and sees as many frames
    if frames is not None:
        use_sampling(frames, recipe.data.video.fps, recipe.data.video.max_frames)
    _stop_at(student, reader.format.closing_id)
    known = [
        know_teacher(recipe, teacher, processor, reader, limits, needs=asked, device=device, use_cache=use_cache)
        for teacher, asked in needs.items()
    ]
    for later in known[1:]:
        check_weights(located(later.section))  # what is wrong with them must not show hours later
    if before is not None:
        take_over_bridges(recipe, before, known)
    teachers = Teachers(
        known, lambda teacher, head_alone: load_teacher(recipe, teacher, device=device, head_alone=head_alone)
    )
    if use_cache:
        teachers.weights_for(recipe.resolved_stages()[0])
    return RunContext(recipe, student, teachers, processor, reader, dtype, before)


def _stop_at(student: Pathway, token: int) -> None:
    """Let generation stop at the token that is learned as the end of answers."""
    config = student.model.generation_config
    assert config is not None
    stops = torch.tensor([] if config.eos_token_id is None else config.eos_token_id).reshape(-1).long().tolist()
    if token not in stops:
        _log.info("generation stops at %s in the student's generation config; from now on also at %d", stops, token)
        config.eos_token_id = [*stops, token] if stops else token


def _needs_by_teacher(recipe: Recipe) -> dict[Teacher, frozenset[Need]]:
    """Every teacher that a stage learns from, in the order of stages → what the methods of its stages ask for."""
    needs: dict[Teacher, frozenset[Need]] = {}
    for stage in recipe.resolved_stages():
        for one in stage.by_teacher.values():
            if one.teacher is not None:
                needs[one.teacher] = needs.get(one.teacher, frozenset()) | stage.method.needs
    return needs


def take_over_bridges(recipe: Recipe, before: Continued, known: list[KnownTeacher]) -> None:
    """Have the bridges of the teachers of the first stage that has some go on from where another run left them."""
    stage = next((stage for stage in recipe.resolved_stages() if stage.by_teacher), None)
    if stage is None:
        return
    for tag, one in stage.by_teacher.items():
        (teacher,) = (each for each in known if each.section == one.teacher)
        before.take_over("bridge", teacher.bridge, tag=tag if stage.tagged else None)


def _check_attention(recipe: Recipe) -> None:
    """Raise ValueError where a method looks at attention weights and the recipe asks for code that keeps none."""
    stages = [stage for stage in recipe.resolved_stages() if any(site.eager_attention for site in stage.method.sites)]
    if not stages:
        return
    asked = [one.teacher for stage in stages for one in stage.by_teacher.values()]
    teachers = [(name, model) for name, model in recipe.teacher_sections.items() if model in asked]
    sites = [site for stage in stages for site in stage.method.sites if site.eager_attention]
    models: list[tuple[str, Student | Teacher]] = [*teachers]
    if not all(site.teacher_alone for site in sites):
        models.insert(0, ("student", recipe.student))
    for who, model in models:
        if model.attn_implementation not in ("auto", "eager"):
            raise ValueError(
                f"{who}.attn_implementation is {model.attn_implementation}, which keeps no attention weights, and a method of this recipe "
                "compares them: leave it at auto (the language model then runs eager attention in that stage), or choose eager"
            )
    if recipe.train.torch_compile:
        raise ValueError(
            "train.torch_compile is true, and compiled layers do not show the attention weights that a method of this recipe compares: "
            "turn it off"
        )


def index_rows(run: RunContext, stage: ResolvedStage, directory: Path) -> Dataset:
    """The stage's usable rows, each as often as its data weigh, from an index in which every row has been looked at once.

    What is wrong with rows is left in `directory`.

    Raises:
        DataError: if too many rows cannot be used.
        ValueError: if too few of the answer tokens can be compared.
    """
    recipe, names = run.recipe, data_names(stage.data)
    allowed = recipe.data.max_bad_fraction
    if recipe.data.streaming:
        rows = open_stream(recipe, stage).head(HEAD)
        allowed = min(allowed * max(PATIENCE / len(rows), 1), 1.0)
    else:
        rows = load_rows(names, recipe.data.image_root, recipe.data.columns, data_teachers(stage.data))
    if recipe.data.rows is not None:
        if recipe.data.rows > len(rows):
            raise ValueError(
                f"data.rows asks for the first {recipe.data.rows} rows, and {', '.join(names)} has {len(rows)}"
            )
        rows = rows.select(range(recipe.data.rows))
    usable = _usable_rows(run, stage, rows, directory / "rows.json", allowed)
    return weigh(usable, data_weights(stage.data), seed=recipe.train.seed)


def index_held_out(run: RunContext, stage: ResolvedStage, directory: Path) -> HeldOut | None:
    """The usable rows of `data.validation` in the same way; None where the recipe names none. Raises as `index_rows`."""
    recipe, named = run.recipe, run.recipe.data.validation
    if named is None:
        return None
    rows = load_rows(data_names(named), recipe.data.image_root, recipe.data.columns, data_teachers(named))
    usable = _usable_rows(run, stage, rows, directory / "validation-rows.json", recipe.data.max_bad_fraction)
    return HeldOut.of(weigh(usable, data_weights(named), seed=recipe.train.seed), recipe.train.eval_questions)


def _usable_rows(run: RunContext, stage: ResolvedStage, rows: Dataset, report: Path, allowed: float) -> Dataset:
    """Those that every model of the stage can read; what is wrong with the others is left in `report`."""
    report.parent.mkdir(parents=True, exist_ok=True)
    teachers = run.teachers.by_tag(stage)
    index = build_index(
        rows,
        run.collator(stage),
        max_bad_fraction=allowed,
        report_path=report if processes().is_main_process else None,
        # a teacher's cache has what was said of a picture, which nobody opens to say it again
        recheck_pictures=any(teacher.section.cache is not None for teacher in teachers.values()),
    )
    for tag, teacher in teachers.items():
        taught = taught_by(index.rows, tag) if stage.tagged else index.rows
        if isinstance(teacher.reading, OwnInputs) and len(taught):
            check_aligned(taught, run.recipe.pair.min_aligned)
        if teacher.store is not None:
            teacher.store.check_rows(taught["key"][:])
    return index.rows


def open_stream(recipe: Recipe, stage: ResolvedStage) -> RowStream:
    """The rows of a stage, as they come."""
    return RowStream(data_names(stage.data), recipe.data.image_root, recipe.data.columns, data_teachers(stage.data))


def open_stage(
    run: RunContext,
    stage: ResolvedStage,
    directory: Path,
    rows: Dataset | None = None,
    held_out: HeldOut | None = None,
) -> StageContext:
    """Set which parts learn, and join student and teachers, whose weights are loaded where they are not in memory.

    `rows`, `held_out`: of `index_rows` and `index_held_out`, where rows are known.

    Raises:
        DataError, ValueError: if the rows cannot be used, or the pair does not fit the method.
    """
    recipe = run.recipe
    if rows is None:
        rows, held_out = index_rows(run, stage, directory), index_held_out(run, stage, directory)
    run.student.train_only(stage.train)
    freeze(run.student, recipe.student.freeze)
    if widened := widen_learning(run.student):
        _log.info("the student's %s learn in float32, from half-precision weights", " and ".join(widened))
    set_seed(
        recipe.train.seed
    )  # what a stage draws does not depend on what ran before it, which a resumed run leaves out
    weights, known = run.teachers.weights_for(stage), run.teachers.by_tag(stage)
    pairs = {tag: _pair(run, stage, known[tag], model, tag) for tag, model in weights.items()}
    pair = pairs if stage.tagged else pairs.get(TEACHER) or _pair(run, stage)
    masks = [mask for tag, one in pairs.items() if (mask := _mask(known[tag], one)) is not None]
    step = DistillationStep(pair, stage.method, loss=recipe.train.loss, masks=masks)
    context = StageContext(run, stage, rows, step, _collator(run, stage, rows), directory, held_out)
    if recipe.data.packing:
        packs = Packs(rows, recipe.data.max_length, seed=recipe.train.seed)
        _log.info("%s; the student keeps them apart by %s attention", packs, run.student.attention)
        context = replace(context, packs=packs)
    if recipe.data.streaming:
        stream = StreamLoader(
            open_stream(recipe, stage),
            recipe.data,
            context.collator,
            batch_size=stage.per_device_train_batch_size,
            workers=recipe.train.dataloader_num_workers,
            seed=recipe.train.seed,
            report=directory / "rows.json",
        )
        context = replace(context, stream=stream)
    for one in context.by_teacher.values():
        bridge = one.pair.bridge
        if bridge is not None and not bridge.fitted and recipe.pair.fit_rows and len(one.rows):
            fit_bridge(one, recipe.pair.fit_rows)
        for module in [] if one.pair.learned is None else one.pair.learned.modules():
            if isinstance(module, FeatureWeights) and not module.measured and len(one.rows):
                weigh_features(one, module)
    return context


def _pair(
    run: RunContext,
    stage: ResolvedStage,
    teacher: KnownTeacher | None = None,
    weights: Pathway | TeacherHead | None = None,
    tag: str = TEACHER,
) -> Pair:
    """Student and teacher, and what learns with them."""
    return Pair(
        run.student,
        weights,
        needs=stage.method.needs,
        vocabulary=run.reader.ids if teacher is None else teacher.vocabulary,
        first_words=None if teacher is None else teacher.first_words,
        bridge=None if teacher is None else teacher.bridge,
        learned=_learned(run, stage, weights, tag if stage.tagged else None),
        teacher_device=None if teacher is None else device_of(teacher.section),
    )


def _mask(teacher: KnownTeacher, pair: Pair) -> MagnitudeMask | None:
    if teacher.section.mask is None or pair.teacher is None:
        return None
    return MagnitudeMask(pair.teacher, teacher.section.mask)


def _learned(
    run: RunContext, stage: ResolvedStage, teacher: Pathway | TeacherHead | None, tag: str | None
) -> nn.Module | None:
    """What the stage's method learns besides the student; in the first stage of a run that goes on, it begins as the other run left it."""
    module = None if teacher is None else stage.method.learned(run.student.sizes, teacher.sizes)
    if run.continued is not None and stage.name == run.recipe.stages[0].name:
        run.continued.take_over("learned", module, tag=tag)
    return None if module is None else module.to(run.student.head.weight.device)


def _collator(run: RunContext, stage: ResolvedStage, rows: Dataset) -> AnyCollator:
    """Makes the batches of a stage. Where weights are spread over processes, all of these run all teachers in every batch."""
    collator = run.collator(stage)
    if not (isinstance(collator, TaggedCollator) and sharded()):
        return collator
    spares = {}
    for tag in collator.collators:
        own = taught_by(rows, tag)
        spares[tag] = own[0] if len(own) else {**rows[0], "teacher": tag}
    return TaggedCollator(collator.collators, spares)


def fit_bridge(context: StageContext, rows: int) -> None:
    """Fit the pair's new bridge to the teacher's features of the first rows, which one teacher teaches."""
    explained = context.pair.fit_bridge(_first_batches(context, rows))
    _log.info(
        "bridge fitted on %d rows: it explains %.1f %% of the variance of the teacher's features",
        min(rows, len(context.rows)),
        100 * explained,
    )


def weigh_features(context: StageContext, weights: FeatureWeights) -> None:
    """Measure how much each channel of the teacher's features matters to what it says about the first rows."""
    weights.measured_as(context.pair.feature_importance(_first_batches(context, weights.rows)))
    _log.info(
        "features weighed on %d rows: their weights are %.2g to %.2g, 1 in the mean",
        min(weights.rows, len(context.rows)),
        weights.weights.min(),
        weights.weights.max(),
    )


def _first_batches(context: StageContext, rows: int) -> Iterator[Batch]:
    """So many first rows, in batches of the stage's size, where the student is."""
    assert isinstance(context.collator, Collator)
    size = context.stage.per_device_train_batch_size
    chosen = context.rows.select(range(min(rows, len(context.rows))))
    device = context.pair.student.head.weight.device
    for start in range(0, len(chosen), size):
        yield context.collator(list(chosen.select(range(start, min(start + size, len(chosen)))))).to(device)


def total_steps(context: StageContext) -> int:
    """Optimizer steps of a stage, as the Trainer counts them: a last step of fewer rows, and of a fraction of an epoch, is one too."""
    stage = context.stage
    if stage.max_steps > 0:
        return stage.max_steps
    per_step: int = stage.per_device_train_batch_size * stage.gradient_accumulation_steps * processes().num_processes
    return math.ceil(stage.num_train_epochs * math.ceil(len(context.drawn) / per_step))
