"""From a recipe to stages that are ready to run: models, rows and method, checked against each other."""

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers import AutoProcessor, ProcessorMixin, set_seed

from switchkd.data.collate import Collator
from switchkd.data.guard import check_rows
from switchkd.data.sources import load_rows
from switchkd.methods import Method
from switchkd.models import Pair, Pathway, load_pathway
from switchkd.models.layers import recompute
from switchkd.models.liger import use_liger
from switchkd.train import lora
from switchkd.train.recipe import Recipe, Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What all stages of a run share: the student in memory goes from one to the next."""

    recipe: Recipe
    student: Pathway
    teacher: Pathway | None
    processor: ProcessorMixin
    collator: Collator


@dataclass(frozen=True)
class OpenStage:
    """One stage, ready to run."""

    session: Session
    stage: Stage
    method: Method
    rows: Dataset
    pair: Pair
    directory: Path


def open_session(recipe: Recipe) -> Session:
    """Load student, teacher and processor.

    Raises:
        ValueError: if a model's family is unknown, its weights are incomplete, or teacher and student do not read the same tokens and
            pixels.
    """
    set_seed(recipe.train.seed)
    processor = AutoProcessor.from_pretrained(recipe.student.path, trust_remote_code=False)
    device = PartialState().device
    attention = recipe.student.attn_implementation
    student = load_pathway(recipe.student.path, dtype=recipe.student.dtype, attn_implementation=attention).to(device)
    if recipe.train.liger_kernel:
        use_liger(student)
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(student, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    if recipe.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    teacher = None
    if any("teacher" in stage.method.needs for stage in recipe.resolved_stages() if stage.method):
        assert recipe.teacher is not None  # the recipe has checked it
        check_processors(processor, recipe.student.path, recipe.teacher.path)
        attention = recipe.teacher.attn_implementation
        teacher = load_pathway(recipe.teacher.path, dtype=recipe.teacher.dtype, attn_implementation=attention).to(
            device
        )
        if recipe.train.liger_kernel:
            use_liger(teacher)
        if recipe.train.switch_checkpointing:
            recompute(teacher.part("language"))
    collator = Collator(processor, max_length=recipe.data.max_length, max_pixels=recipe.data.max_pixels)
    processor.chat_template = collator.format.template  # the student is asked as it was trained
    return Session(recipe, student, teacher, processor, collator)


def check_processors(processor: ProcessorMixin, student: str, teacher: str) -> None:
    """Raise ValueError unless the teacher's processor makes the same tokens and pixels as the student's: they share the batch."""
    theirs = AutoProcessor.from_pretrained(teacher, trust_remote_code=False)
    ours_vocabulary, their_vocabulary = processor.tokenizer.get_vocab(), theirs.tokenizer.get_vocab()
    if ours_vocabulary != their_vocabulary:
        differing = len(set(ours_vocabulary.items()) ^ set(their_vocabulary.items()))
        raise ValueError(
            f"the tokenizers of {student} ({len(ours_vocabulary)} tokens) and {teacher} ({len(their_vocabulary)} tokens) differ in "
            f"{differing} entries: their logits cannot be compared one to one. Choose a student with the teacher's tokenizer"
        )
    ours_images, their_images = (
        {
            key: value
            for key, value in p.image_processor.to_dict().items()
            if not key.startswith(("image_processor_type", "processor_class"))
        }
        for p in (processor, theirs)
    )
    if differing_keys := sorted(
        key for key in ours_images | their_images if ours_images.get(key) != their_images.get(key)
    ):
        key = differing_keys[0]
        raise ValueError(
            f"the image processors of {student} and {teacher} differ in {key}: {ours_images.get(key)} and {their_images.get(key)}. "
            "Both models see the same pixels, so save the student with the teacher's processor"
        )


def open_stage(session: Session, stage: Stage, directory: Path) -> OpenStage:
    """Check the stage's rows, set which parts learn, and join student and teacher.

    Raises:
        DataError: if too many rows cannot be used.
        ValueError: if the pair does not fit the method.
    """
    assert stage.method is not None
    assert stage.data is not None
    recipe = session.recipe
    directory.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    with state.main_process_first():
        rows = load_rows(stage.data, recipe.data.image_root)
        rows = check_rows(
            rows,
            session.collator,
            max_bad_fraction=recipe.data.max_bad_fraction,
            report_path=directory / "rows.json" if state.is_main_process else None,
        )
    session.student.train_only(stage.train)
    vocabulary = len(session.processor.tokenizer)
    pair = Pair(session.student, session.teacher, needs=stage.method.needs, vocabulary=vocabulary)
    return OpenStage(session, stage, stage.method, rows, pair, directory)


def total_steps(opened: OpenStage) -> int:
    """Optimizer steps of a stage, as the Trainer counts them."""
    stage = opened.stage
    assert stage.max_steps is not None
    assert stage.num_train_epochs is not None
    if stage.max_steps > 0:
        return stage.max_steps
    world = PartialState().num_processes
    per_step = (stage.per_device_train_batch_size or 1) * (stage.gradient_accumulation_steps or 1) * world
    return int(-(-len(opened.rows) // per_step) * stage.num_train_epochs)
