"""The checks that catch silent failure before hours are spent."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from switchkd.data.guard import open_image
from switchkd.losses import cross_entropy
from switchkd.models import Pathway
from switchkd.train.memory import Load, Memory, estimate
from switchkd.train.recipe import Recipe
from switchkd.train.session import OpenStage, open_session, open_stage, total_steps
from switchkd.types import Batch, answer_targets, to_device

Level = Literal["ok", "warning", "failed"]
#: Rows looked at; each is run through both models with its own, with blank and with other images.
_SAMPLES = 8
#: Nats per answer token: below this the pixels do not reach the answers at all. Rounding in float32 stays under it.
_NO_EFFECT = 1e-5


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    check: str
    detail: str


@dataclass
class Findings:
    """All that was found about a recipe."""

    lines: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings pass."""
        return all(line.level != "failed" for line in self.lines)

    def print(self) -> None:
        """Write the report to the error stream."""
        table = Table(box=None, header_style="bold")
        for heading in ("", "check", "found"):
            table.add_column(heading)
        style = {"ok": "green", "warning": "yellow", "failed": "bold red"}
        for line in self.lines:
            table.add_row(Text(line.level, style=style[line.level]), Text(line.check), Text(line.detail))
        Console(stderr=True, width=None if sys.stderr.isatty() else 160).print(table)

    def raise_if_failed(self) -> None:
        """Raise ValueError with everything that failed."""
        if failed := [f"{line.check}: {line.detail}" for line in self.lines if line.level == "failed"]:
            raise ValueError("the doctor refuses to train: " + "; ".join(failed))


def examine(recipe: Recipe) -> Findings:
    """Examine every stage of a recipe without training.

    Raises:
        DataError, ValueError: what stops a stage from being opened at all.
    """
    session = open_session(recipe)
    findings = Findings()
    with TemporaryDirectory() as scratch:
        for stage in recipe.resolved_stages():
            opened = open_stage(session, stage, Path(scratch) / stage.name)
            for line in examine_stage(opened).lines:
                findings.lines.append(Finding(line.level, f"{stage.name}: {line.check}", line.detail))
    return findings


def examine_stage(opened: OpenStage) -> Findings:
    """Examine a stage that is about to be trained. Where something fails, the checks that run the models are left out."""
    findings = Findings()
    for check in (_steps, _trainable, _answers, _vocabulary):
        findings.lines.extend(check(opened))
    for check in (_images, _memory):
        if findings.ok:
            findings.lines.extend(check(opened))
    return findings


def _steps(opened: OpenStage) -> Iterator[Finding]:
    steps = total_steps(opened)
    yield Finding("ok" if steps > 0 else "failed", "steps", f"{steps} optimizer steps over {len(opened.rows)} rows")


def _trainable(opened: OpenStage) -> Iterator[Finding]:
    counts = {
        part: sum(p.numel() for p in opened.pair.student.part_parameters(part).values() if p.requires_grad)
        for part in opened.pair.student.family.parts
    }
    detail = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    yield Finding("ok" if sum(counts.values()) else "failed", "trainable parameters", detail)


def _answers(opened: OpenStage) -> Iterator[Finding]:
    answers, tokens = sum(opened.rows["answer_tokens"]), sum(opened.rows["length"])
    share = answers / tokens
    level: Level = "failed" if answers == 0 else "warning" if share > 0.9 else "ok"
    yield Finding(
        level, "answer mask", f"{answers:,} of {tokens:,} tokens ({share:.1%}) are answers and carry the loss"
    )
    batch = opened.session.collator([opened.rows[0]])
    labels = batch["labels"][0]
    text = opened.session.processor.tokenizer.decode(labels[labels >= 0])
    yield Finding("ok", "first row's answers", repr(text if len(text) <= 120 else text[:120] + "…"))


def _vocabulary(opened: OpenStage) -> Iterator[Finding]:
    real, rows = opened.pair.vocabulary, opened.pair.student.head.rows
    yield Finding(
        "ok",
        "vocabulary",
        f"{real:,} token ids, {rows:,} head rows, {rows - real:,} not compared (padding, or not the teacher's)",
    )
    geometry = opened.pair.student.family.geometry(opened.pair.student.model.config)
    expected, found = geometry["image token id"], opened.session.collator.format.image_token_id
    named = opened.session.processor.tokenizer.convert_ids_to_tokens
    fixed = [f"{geometry[key]} {key}" for key in geometry if key.startswith("visual tokens")]
    yield Finding(
        "ok" if found == expected else "failed",
        "image token",
        f"id {expected} ({named(expected)!r}) for the model, id {found} ({named(found)!r}) from the processor; "
        + (fixed[0] if fixed else "their number follows from the size of the image"),
    )


def _images(opened: OpenStage) -> Iterator[Finding]:
    rows = [row for row in opened.rows.select(range(min(len(opened.rows), 64))) if row["images"]][:_SAMPLES]
    if not rows:
        level: Level = "failed" if "switch" in opened.method.needs else "warning"
        yield Finding(level, "images", "none in the first 64 rows: the vision encoder has nothing to learn from")
        return
    own = [open_image(image, max_pixels=opened.session.collator.max_pixels) for row in rows for image in row["images"]]
    blank = [Image.new("RGB", image.size) for image in own]
    others = [other.resize(image.size) for image, other in zip(own, own[1:] + own[:1], strict=True)]
    batches = [_to_device(opened, _with_images(rows, images)) for images in (own, blank, others)]
    pathways = {"student": opened.pair.student} | ({"teacher": opened.pair.teacher} if opened.pair.teacher else {})
    for name, pathway in pathways.items():
        read = [batch.get("teacher", batch) if name == "teacher" else batch for batch in batches]
        yield _image_effect(name, pathway, *read, alone=len(own) == 1)


def _with_images(rows: list[dict], images: list[Image.Image]) -> list[dict]:
    """The rows with other images in the place of theirs."""
    left = iter(images)

    def stored(image: Image.Image) -> dict[str, Any]:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    return [{**row, "images": [stored(next(left)) for _ in row["images"]]} for row in rows]


@torch.no_grad()
def _image_effect(
    name: str, pathway: Pathway, with_own: Batch, with_blank: Batch, with_others: Batch, *, alone: bool
) -> Finding:
    """How much the answers' loss depends on the pixels."""
    training = pathway.training
    pathway.eval()
    own, blank, other = (_answer_loss(pathway, batch) for batch in (with_own, with_blank, with_others))
    pathway.train(training)
    effect = max((blank - own).abs().max().item(), (other - own).abs().max().item())
    detail = f"nats per answer token: {own.mean():.4f} with its image, {blank.mean():.4f} blank, {other.mean():.4f} with another's"
    if effect < _NO_EFFECT:
        return Finding("failed", f"{name} sees images", f"{detail}: the pixels change nothing, so the model is blind")
    if name == "teacher" and other.mean() <= own.mean() and not alone:
        return Finding("warning", f"{name} sees images", f"{detail}: the right image does not help it on this data")
    return Finding("ok", f"{name} sees images", detail)


def _answer_loss(pathway: Pathway, batch: Batch) -> Tensor:
    return cross_entropy(pathway.logits(pathway.say(pathway.see(batch), batch)), answer_targets(batch["labels"]))


def _memory(opened: OpenStage) -> Iterator[Finding]:
    """The estimate for the longest batch; where none is possible without weights, one forward of it is measured."""
    lengths = torch.tensor(opened.rows["length"])
    longest = lengths.topk(min(opened.stage.per_device_train_batch_size or 1, len(lengths))).indices
    rows = [opened.rows[index] for index in longest.tolist()]
    batch = opened.collator(rows)
    answers, images = len(answer_targets(batch["labels"])), sum(len(row["images"]) for row in rows)
    size, length = batch["input_ids"].shape
    load = Load(size, length, answers, images)
    student, teacher = (
        opened.pair.student.model.config,
        opened.pair.teacher.model.config if opened.pair.teacher else None,
    )
    try:
        memory = estimate(opened.session.recipe, opened.stage, student, teacher, load, batch)
    except ValueError:
        memory = _measured(opened, to_device(batch, opened.pair.student.model.device))
    free = _free_bytes(opened.pair.student.model.device)
    detail = f"{memory}; {free / 2**30:.1f} GiB are free beside the weights"
    yield Finding("ok" if memory.peak - memory.weights < free else "failed", "memory", detail)


def _measured(opened: OpenStage, batch: Batch) -> Memory:
    """Weights, gradients and optimizer from their sizes; activations from one forward, all of them under the student's name."""
    weights = sum(p.numel() * p.element_size() for p in opened.pair.parameters())
    gradients = sum(p.numel() * p.element_size() for p in opened.pair.parameters() if p.requires_grad)
    kept = _activation_bytes(opened, batch)
    peak = weights + 3 * gradients + kept
    return Memory(weights, 2 * gradients, gradients, 0, student_language=kept, switch=0, loss=0, peak=peak)


def _activation_bytes(opened: OpenStage, batch: Batch) -> int:
    """Bytes that autograd keeps for the backward of one micro-batch, each storage counted once, parameters not."""
    own = {p.untyped_storage().data_ptr() for p in opened.pair.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = opened.pair.training
    opened.pair.train()
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = opened.method.terms(opened.pair(batch, opened.method.needs), answer_targets(batch["labels"]))
    opened.pair.train(training)
    del terms
    return sum(kept.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _to_device(opened: OpenStage, rows: list[dict]) -> Batch:
    return to_device(opened.collator(rows), opened.pair.student.model.device)
