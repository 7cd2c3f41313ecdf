"""A teacher of a recipe: what is known of it before its weights are there, and its weights, as far as they are needed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import ProcessorMixin

from switchkd.agree import on_main
from switchkd.data.reader import Reader
from switchkd.data.teacher_store import MadeWith, TeacherStore, check_made_with
from switchkd.methods.method import Need
from switchkd.models import Pathway, load_pathway
from switchkd.models.families import family_of
from switchkd.models.layers import recompute
from switchkd.models.liger import use_kernels
from switchkd.models.model_digest import model_digest
from switchkd.models.opening import load_config, load_processor
from switchkd.models.packed_rows import use_flash_attention
from switchkd.models.revision import at_revision
from switchkd.models.teacher_head import TeacherHead, load_head
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.compatibility import check_layers, raise_if_incompatible
from switchkd.pairing.pair_report import PairReport, compare_models
from switchkd.pairing.reading import OwnInputs, SameInputs
from switchkd.pairing.vocabulary import Ids
from switchkd.recipe.schema import Recipe, Student, Teacher
from switchkd.train.launch import mixed_precision
from switchkd.train.precision import HALF
from switchkd.train.teacher_device import device_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownTeacher:
    """What is known of a teacher before its weights are there: how it fits the student, and how it reads what the student reads."""

    section: Teacher
    reading: SameInputs | OwnInputs
    #: What follows from the two models; None where both were in memory, and nobody looked.
    report: PairReport | None = None
    #: From the student's visual features to this teacher's projector, where the switch needs one; it goes from stage to stage.
    bridge: Bridge | None = None
    #: What it says of every row, where the recipe names a cache.
    store: TeacherStore | None = None

    @property
    def vocabulary(self) -> int | Ids:
        """Which ids are compared."""
        if self.report is not None:
            return self.report.vocabulary
        assert isinstance(self.reading, SameInputs)
        return self.reading.vocabulary

    @property
    def first_words(self) -> Ids | None:
        """Which ids are compared where one model's token has a space before the word that the other's has not."""
        return None if self.report is None else self.report.first_words


def located(model: Student | Teacher) -> str:
    """Where a model of a recipe is opened: its path, or the folder of its revision."""
    return at_revision(model.path, model.revision)


def know_teacher(
    recipe: Recipe,
    teacher: Teacher,
    student: ProcessorMixin,
    reader: Reader,
    limits: Mapping[str, Any],
    *,
    needs: frozenset[Need],
    device: torch.device,
    use_cache: bool,
) -> KnownTeacher:
    """Look at a teacher's config, processor and cache.

    Args:
        recipe: whose teacher it is.
        teacher: which one.
        student: the student's processor.
        reader: the student's.
        limits: of the readers.
        needs: what the methods of its stages ask for.
        device: where a bridge goes.
        use_cache: whether what its cache has is taken from there.

    Raises:
        DataError: a cache that is not complete, or was made with something else.
        ValueError: if teacher and student cannot be compared, or only over a bridge that the recipe does not want.
    """
    path = located(teacher)
    configs, processor = [load_config(located(model)) for model in (recipe.student, teacher)], load_processor(path)
    report = compare_models((configs[0], student), (configs[1], processor))
    raise_if_incompatible(
        report.differences,
        needs,
        bridge=recipe.pair.bridge != "none",
        pair=f"{recipe.student.path} and {teacher.path}",
    )
    check_layers(needs, family_of(configs[1]))
    for difference in report.mismatches:
        _log.info("student and teacher differ in %s: %s", difference, difference.verdict)
    reading: SameInputs | OwnInputs
    if report.separate_inputs:
        rows = family_of(configs[1]).geometry.vocabulary_rows
        reading = OwnInputs(Reader(processor, rows=rows, **limits), report.vocabulary, report.first_words)
    else:
        assert isinstance(report.vocabulary, int)  # with other tokenizers, inputs are separate
        reading = SameInputs(report.vocabulary)
    bridge = None
    if recipe.pair.bridge == "always" or report.needs_bridge:
        bridge = Bridge(*(family_of(config).geometry.feature_width for config in configs)).to(device)
    store = None
    if use_cache and teacher.cache is not None:
        folder, now = Path(teacher.cache), made_with(recipe, teacher, reader, reading)
        on_main(lambda: check_made_with(folder, now))
        store = TeacherStore(folder)
    return KnownTeacher(teacher, reading, report, bridge, store)


def load_teacher(recipe: Recipe, teacher: Teacher, *, device: torch.device, head_alone: bool) -> Pathway | TeacherHead:
    """The weights of a teacher.

    Args:
        recipe: whose teacher it is.
        teacher: which one.
        device: the student's, where its weights go if the teacher has no device of its own; its head alone always does.
        head_alone: its head alone is needed, because a cache has what it says.

    Raises:
        ValueError: weights that cannot be loaded.
    """
    path = located(teacher)
    if head_alone:
        return load_head(path, dtype=teacher.dtype, device=device)
    model = load_pathway(
        path,
        dtype=teacher.dtype,
        attn_implementation=teacher.attn_implementation,
        quantization=teacher.quantization,
        device=device_of(teacher) or device,
    )
    use_kernels(model, recipe.train.kernels)
    if recipe.data.packing:
        use_flash_attention(model, half=mixed_precision(recipe.train) != "no" or model.model.dtype in HALF)
    if recipe.train.switch_checkpointing:
        recompute(model.part("language"))
    return model


def made_with(recipe: Recipe, teacher: Teacher, reader: Reader, reading: SameInputs | OwnInputs) -> MadeWith:
    """All that a cache depends on besides its rows; equal where what it holds is what the teacher would say.

    How attention is computed, and on which device, changes last bits alone and is not among it.
    """
    path = located(teacher)
    kept = "hidden states" if teacher.cache_logits is None else f"the {teacher.cache_logits} largest logits"
    own = (
        {}
        if reading.reader is None
        else {f"teacher's {name}": part for name, part in reading.reader.named_parts.items()}
    )
    return {
        "kept": kept,
        "teacher": on_main(lambda: model_digest(path)),
        "dtype": teacher.dtype,
        "quantization": teacher.quantization,
        "mixed precision": mixed_precision(recipe.train),
        **reader.named_parts,
        **own,
        "ids that are compared": reading.compared_ids,
    }
