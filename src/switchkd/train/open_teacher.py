"""A recipe's teacher, opened: whole, or its head alone where a cache has what it says and nothing else is asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from switchkd.agree import on_main
from switchkd.data.reader import Reader
from switchkd.data.teacher_store import MadeWith, TeacherStore, check_made_with
from switchkd.methods.method import Need
from switchkd.models import Pathway, load_pathway
from switchkd.models.layers import recompute
from switchkd.models.liger import use_kernels
from switchkd.models.model_digest import model_digest
from switchkd.models.opening import load_processor
from switchkd.models.packed_rows import use_flash_attention
from switchkd.models.revision import at_revision
from switchkd.models.teacher_head import TeacherHead, load_head
from switchkd.pairing.pair_report import PairReport
from switchkd.pairing.reading import OwnInputs, SameInputs
from switchkd.recipe.schema import Recipe, Teacher
from switchkd.train.launch import mixed_precision
from switchkd.train.precision import HALF


@dataclass(frozen=True)
class OpenTeacher:
    """A teacher, how it reads what the student reads, and the cache of what it says, where there is one."""

    model: Pathway | TeacherHead
    reading: SameInputs | OwnInputs
    store: TeacherStore | None


def open_teacher(
    recipe: Recipe,
    teacher: Teacher,
    reader: Reader,
    report: PairReport,
    limits: Mapping[str, Any],
    *,
    needs: frozenset[Need],
    device: torch.device,
    use_cache: bool,
) -> OpenTeacher:
    """Load a teacher as far as it is needed.

    Args:
        recipe: whose teacher it is.
        teacher: which one.
        reader: the student's.
        report: how the two fit.
        limits: of the readers.
        needs: what methods ask of it.
        device: where its weights go.
        use_cache: whether what its cache has is taken from there.

    Raises:
        DataError: a cache that is not complete, or was made with something else.
        ValueError: weights that cannot be loaded.
    """
    path, cached = at_revision(teacher.path, teacher.revision), use_cache and teacher.cache is not None
    model: Pathway | TeacherHead
    if cached and not needs - {"student", "teacher"}:
        model = load_head(path, dtype=teacher.dtype, device=device)
    else:
        model = load_pathway(
            path,
            dtype=teacher.dtype,
            attn_implementation=teacher.attn_implementation,
            quantization=teacher.quantization,
            device=device,
        )
        use_kernels(model, recipe.train.kernels)
        if recipe.data.packing:
            use_flash_attention(model, half=mixed_precision(recipe.train) != "no" or model.model.dtype in HALF)
        if recipe.train.switch_checkpointing:
            recompute(model.part("language"))
    reading: SameInputs | OwnInputs
    if report.separate_inputs:
        teacher_reader = Reader(load_processor(path), rows=model.head.rows, **limits)
        reading = OwnInputs(teacher_reader, report.vocabulary, report.first_words)
    else:
        assert isinstance(report.vocabulary, int)  # with other tokenizers, inputs are separate
        reading = SameInputs(report.vocabulary)
    store = None
    if cached:
        assert teacher.cache is not None
        folder, now = Path(teacher.cache), made_with(recipe, teacher, reader, reading)
        on_main(lambda: check_made_with(folder, now))
        store = TeacherStore(folder)
    return OpenTeacher(model, reading, store)


def made_with(recipe: Recipe, teacher: Teacher, reader: Reader, reading: SameInputs | OwnInputs) -> MadeWith:
    """All that a cache depends on besides its rows; equal where what it holds is what the teacher would say.

    How attention is computed, and on which device, changes last bits alone and is not among it.
    """
    path = at_revision(teacher.path, teacher.revision)
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
