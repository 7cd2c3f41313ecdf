"""From a recipe to stages that are ready to run: models, rows and method, checked against each other."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoProcessor, ProcessorMixin, set_seed

from switchkd.data.collate import Collator
from switchkd.data.formats import load_rows
from switchkd.data.images import check_rows
from switchkd.methods import Method
from switchkd.models import Pathway, load_pathway
from switchkd.models.layers import recompute
from switchkd.models.liger import use_liger
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.compatibility import refuse
from switchkd.pairing.pair_collate import PairCollator
from switchkd.pairing.pair_report import Match, match
from switchkd.recipe.schema import Recipe, Stage
from switchkd.train import lora
from switchkd.train.parts import freeze
from switchkd.types import Need, to_device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What all stages of a run share: the student in memory goes from one to the next."""

    recipe: Recipe
    student: Pathway
    teacher: Pathway | None
    processor: ProcessorMixin
    #: Makes the student's batches.
    collator: Collator
    match: Match | None = None
    #: Makes the student's batches with the teacher's in them, where the two read differently.
    pair_collator: PairCollator | None = None
    bridge: Bridge | None = None


@dataclass(frozen=True)
class OpenStage:
    """One stage, ready to run."""

    session: Session
    stage: Stage
    method: Method
    rows: Dataset
    pair: Pair
    directory: Path

    @property
    def collator(self) -> Collator | PairCollator:
        """Makes its batches."""
        return _collator(self.session, self.method)


def open_session(recipe: Recipe) -> Session:
    """Load student, teacher and processor.

    Raises:
        ValueError: if a model's family is unknown, its weights are incomplete, or teacher and student do not read the same tokens and
            pixels.
    """
    _check_attention(recipe)
    set_seed(recipe.train.seed)
    processor = AutoProcessor.from_pretrained(recipe.student.path, trust_remote_code=False)
    device = PartialState().device
    mixed = "bfloat16" if recipe.train.bf16 else "float16" if recipe.train.fp16 else None
    student = load_pathway(
        recipe.student.path,
        dtype=recipe.student.dtype,
        attn_implementation=recipe.student.attn_implementation,
        quantization=recipe.student.quantization,
        compute_dtype=mixed,
        device=device,
    )
    if recipe.train.liger_kernel:
        use_liger(student)
    if recipe.student.lora:
        settings = recipe.student.lora
        lora.add(student, r=settings.r, alpha=settings.alpha, dropout=settings.dropout)
    if recipe.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    teacher, found = None, None
    if any("teacher" in stage.method.needs for stage in recipe.resolved_stages() if stage.method):
        assert recipe.teacher is not None  # the recipe has checked it
        found = match_pair(recipe, processor)
        teacher = load_pathway(
            recipe.teacher.path,
            dtype=recipe.teacher.dtype,
            attn_implementation=recipe.teacher.attn_implementation,
            quantization=recipe.teacher.quantization,
            device=device,
        )
        if recipe.train.liger_kernel:
            use_liger(teacher)
        if recipe.train.switch_checkpointing:
            recompute(teacher.part("language"))
    collator = Collator(processor, max_length=recipe.data.max_length, max_pixels=recipe.data.max_pixels)
    processor.chat_template = collator.format.template  # the student is asked as it was trained
    if teacher is None or found is None:
        return Session(recipe, student, None, processor, collator)
    theirs = None
    if found.apart:
        assert recipe.teacher is not None
        reader = AutoProcessor.from_pretrained(recipe.teacher.path, trust_remote_code=False)
        limits = {"max_length": recipe.data.max_length, "max_pixels": recipe.data.max_pixels}
        theirs = PairCollator(collator, Collator(reader, **limits), found.vocabulary)
    bridge = None
    if recipe.pair.bridge == "always" or found.needs_bridge:
        widths = [pathway.family.geometry(pathway.model.config)["feature width"] for pathway in (student, teacher)]
        bridge = Bridge(*widths).to(device)
    return Session(recipe, student, teacher, processor, collator, found, theirs, bridge)


def match_pair(recipe: Recipe, processor: ProcessorMixin) -> Match:
    """How the recipe's teacher fits its student; every mismatch is logged.

    Raises:
        ValueError: if they cannot be compared, or only over a bridge that the recipe does not want.
    """
    assert recipe.teacher is not None
    student, teacher = recipe.student.path, recipe.teacher.path
    configs = [AutoConfig.from_pretrained(path, trust_remote_code=False) for path in (student, teacher)]
    found = match(
        (configs[0], processor), (configs[1], AutoProcessor.from_pretrained(teacher, trust_remote_code=False))
    )
    refuse(found.items, _needs(recipe), bridge=recipe.pair.bridge != "none", pair=f"{student} and {teacher}")
    for item in found.mismatches:
        _log.info("student and teacher differ in %s: %s", item, item.verdict)
    return found


def _needs(recipe: Recipe) -> frozenset[Need]:
    """Of all stages."""
    return frozenset().union(*(stage.method.needs for stage in recipe.resolved_stages() if stage.method))


def _check_attention(recipe: Recipe) -> None:
    """Raise ValueError where a method looks at attention weights and the recipe asks for code that keeps none."""
    if "attention" not in _needs(recipe):
        return
    for who, model in (("student", recipe.student), ("teacher", recipe.teacher)):
        if model is not None and model.attn_implementation not in ("auto", "eager"):
            raise ValueError(
                f"{who}.attn_implementation is {model.attn_implementation}, which keeps no attention weights, and a method of this recipe "
                "compares them: leave it at auto (the language model then runs eager attention in that stage), or choose eager"
            )
    if recipe.train.torch_compile:
        raise ValueError(
            "train.torch_compile is true, and compiled layers do not show the attention weights that a method of this recipe compares: "
            "turn it off"
        )


def stage_rows(session: Session, stage: Stage, directory: Path) -> Dataset:
    """The stage's rows, every one of them checked; what was found is left in `directory`.

    Raises:
        DataError: if too many rows cannot be used.
        ValueError: if too few of the answer tokens can be compared.
    """
    assert stage.method is not None
    assert stage.data is not None
    recipe, collator = session.recipe, _collator(session, stage.method)
    directory.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    with state.main_process_first():
        rows = load_rows(stage.data, recipe.data.image_root)
        if recipe.data.rows is not None:
            if recipe.data.rows > len(rows):
                raise ValueError(
                    f"data.rows asks for the first {recipe.data.rows} rows, and {stage.data} has {len(rows)}"
                )
            rows = rows.select(range(recipe.data.rows))
        rows = check_rows(
            rows,
            collator,
            max_bad_fraction=recipe.data.max_bad_fraction,
            report_path=directory / "rows.json" if state.is_main_process else None,
        )
    if isinstance(collator, PairCollator):
        check_aligned(collator, rows, recipe.pair.min_aligned)
    return rows


def open_stage(session: Session, stage: Stage, directory: Path, rows: Dataset | None = None) -> OpenStage:
    """Set which parts learn, and join student and teacher. `rows`: those of `stage_rows`, where they have been checked already.

    Raises:
        DataError, ValueError: if the rows cannot be used, or the pair does not fit the method.
    """
    assert stage.method is not None
    recipe = session.recipe
    rows = stage_rows(session, stage, directory) if rows is None else rows
    session.student.train_only(stage.train)
    freeze(session.student, recipe.student.freeze)
    pair = Pair(
        session.student,
        session.teacher,
        needs=stage.method.needs,
        vocabulary=session.match.vocabulary if session.match else len(session.processor.tokenizer),
        bridge=session.bridge,
        learned=_learned(session, stage.method),
    )
    opened = OpenStage(session, stage, stage.method, rows, pair, directory)
    if pair.bridge is not None and not pair.bridge.fitted and recipe.pair.fit_rows:
        fit_bridge(opened, recipe.pair.fit_rows)
    return opened


def _learned(session: Session, method: Method) -> nn.Module | None:
    """What the method learns beside the student."""
    if session.teacher is None:
        return None
    module = method.learned(session.student.sizes, session.teacher.sizes)
    return None if module is None else module.to(session.student.head.weight.device)


def check_aligned(collator: PairCollator, rows: Dataset, least: float) -> None:
    """Log the share of answer tokens that can be compared, and raise ValueError where it is too small."""
    share = collator.aligned_share(rows)
    if share < least:
        raise ValueError(
            f"only {share:.1%} of the student's answer tokens are the same text and id for the teacher, and `pair.min_aligned` asks for "
            f"{least:.1%}: choose a teacher with a nearer tokenizer or chat template, or lower it"
        )
    _log.info("%.1f %% of the student's answer tokens are compared with the teacher's", 100 * share)


def fit_bridge(opened: OpenStage, rows: int) -> None:
    """Fit the pair's new bridge to the teacher's features of the first rows."""
    size = opened.stage.per_device_train_batch_size or 1
    chosen = opened.rows.select(range(min(rows, len(opened.rows))))
    device = opened.pair.student.head.weight.device
    batches = (
        to_device(opened.collator(list(chosen.select(range(start, min(start + size, len(chosen)))))), device)
        for start in range(0, len(chosen), size)
    )
    explained = opened.pair.fit_bridge(batches)
    _log.info(
        "bridge fitted on %d rows: it explains %.1f %% of the variance of the teacher's features",
        len(chosen),
        100 * explained,
    )


def _collator(session: Session, method: Method) -> Collator | PairCollator:
    both = "teacher" in method.needs and session.pair_collator is not None
    return session.pair_collator if both and session.pair_collator else session.collator


def total_steps(opened: OpenStage) -> int:
    """Optimizer steps of a stage, as the Trainer counts them: a last step of fewer rows, and of a fraction of an epoch, is one too."""
    stage = opened.stage
    assert stage.max_steps is not None
    assert stage.num_train_epochs is not None
    if stage.max_steps > 0:
        return stage.max_steps
    world = PartialState().num_processes
    per_step = (stage.per_device_train_batch_size or 1) * (stage.gradient_accumulation_steps or 1) * world
    return math.ceil(stage.num_train_epochs * math.ceil(len(opened.rows) / per_step))
