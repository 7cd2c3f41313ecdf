"""Whether the images reach the answers, in both models: as many features as image tokens, and other answers for other images."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from switchkd.data.images import open_image
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.looked_at import SEARCHED, Reader, answer_losses, autocast, collate, readers, rows_with_images
from switchkd.pairing.pair_collate import PairCollator
from switchkd.train.stage import OpenStage
from switchkd.types import Batch

#: Nats per answer token: below this the pixels do not reach the answers at all. Rounding in float32 stays under it.
_NO_EFFECT = 1e-5
#: Of the largest feature: below this two images look the same to V.
_SAME_FEATURES = 1e-5
#: Normalised pixels lie within a few standard deviations; 0 to 255 does not.
_LARGEST_PIXEL = 20
#: Normalisations that vision encoders are published with: mean and standard deviation of each channel.
NORMALISATIONS = {
    "SigLIP": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "CLIP": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
#: The right image must help the teacher more than another one does, by so many standard errors.
_HELPS = 2
#: Another normalisation is named when it is better by so many standard errors, and by so many nats.
_ERRORS, _NATS = 3, 0.02


def tokens_and_features(opened: OpenStage) -> Iterator[Finding]:
    """In the longest row with images, there are as many image tokens as features to put in their place."""
    with_images = [i for i in range(min(len(opened.rows), 16 * SEARCHED)) if opened.rows[i]["images"]]
    if not with_images:
        return
    lengths = opened.rows["length"]
    row = opened.rows[max(with_images, key=lambda index: lengths[index])]
    for name, pathway, batch in readers(opened, collate(opened, [row])):
        config = pathway.model.config
        geometry = pathway.family.geometry(config)
        if problem := _wrong_size(batch, geometry.get("image size in pixels")):
            yield Finding("failed", f"{name}'s image tokens", f"row {row['id']!a}: {problem}")
            continue
        tokens = int((batch["input_ids"] == geometry["image token id"]).sum())
        with torch.no_grad(), autocast(opened):
            if (seen := pathway.see(batch)) is None:
                detail = f"row {row['id']!a} has images, but they do not reach the vision encoder"
                yield Finding("failed", f"{name}'s image tokens", detail)
                continue
            projected: Any = pathway.family.project(pathway.model, seen, batch).pooler_output
        features = sum(part.numel() // part.shape[-1] for part in projected)
        detail = f"row {row['id']!a} has {tokens} image tokens and {features} features in its {batch['input_ids'].shape[1]} tokens"
        if tokens == features:
            yield Finding("ok", f"{name}'s image tokens", detail)
        else:
            why = (
                "a truncated image, or a processor of another model"
                if tokens < features
                else "a processor of another model"
            )
            yield Finding("failed", f"{name}'s image tokens", f"{detail}: {why}")


def _wrong_size(batch: Batch, side: int | None) -> str | None:
    """Where all images or tiles have one size, the processor must make it."""
    if (
        side is None
        or "pixel_values" not in batch
        or (found := tuple(batch["pixel_values"].shape[-2:])) == (side, side)
    ):
        return None
    return f"its images are {found[0]} x {found[1]} pixels and the model reads {side} x {side}: the processor belongs to another model"


def effects(opened: OpenStage) -> Iterator[Finding]:
    """The answers of both models depend on the pixels, and the teacher's are better with the right image than with another or none."""
    rows = rows_with_images(opened)
    if not rows:
        level: Level = "failed" if "switch" in opened.method.needs else "warning"
        detail = f"none in the first {SEARCHED} rows: the vision encoder has nothing to learn from"
        yield Finding(level, "images", detail)
        return
    own = [
        open_image(image, max_pixels=opened.session.recipe.data.max_pixels) for row in rows for image in row["images"]
    ]
    blank = [Image.new("RGB", image.size) for image in own]
    others = [other.resize(image.size) for image, other in zip(own, own[1:] + own[:1], strict=True)]
    variants = [readers(opened, collate(opened, _with_images(rows, images))) for images in (own, blank, others)]
    bright = any(image.convert("L").getextrema()[1] > 64 for image in own)  # type: ignore[operator]
    for with_own, with_blank, with_others in zip(*variants, strict=True):
        yield _pixels(with_own, with_blank, bright=bright)
        losses = [answer_losses(opened, reader.pathway, reader.batch) for reader in (with_own, with_blank, with_others)]
        found = _effect(opened, with_own, with_blank, *losses, alone=len(own) == 1)
        yield found
        if with_own.name == "teacher" and found.level == "ok":
            yield from _knowledge(opened, with_own, losses[0])
            yield from _normalisation(opened, rows, with_own, losses[0])


def _with_images(rows: list[dict], images: list[Image.Image]) -> list[dict]:
    """The rows with other images in the place of theirs."""
    left = iter(images)

    def stored(image: Image.Image) -> dict[str, Any]:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    return [{**row, "images": [stored(next(left)) for _ in row["images"]]} for row in rows]


def _pixels(with_own: Reader, with_blank: Reader, *, bright: bool) -> Finding:
    """Pixels are scaled once: not left at 0 to 255, not divided twice."""
    pixels, blank = with_own.batch["pixel_values"].float(), with_blank.batch["pixel_values"].float()
    largest, contrast = pixels.abs().max().item(), (pixels - blank).abs().max().item()
    detail = f"up to {largest:.3g} in size, {contrast:.3g} away from black"
    if largest > _LARGEST_PIXEL:
        detail += ": they are not scaled to 0 … 1 before they are normalised; see do_rescale of the image processor"
        return Finding("failed", f"{with_own.name}'s pixels", detail)
    if bright and contrast < 0.05:
        detail += ": all images are nearly black; is rescale_factor applied twice?"
        return Finding("failed", f"{with_own.name}'s pixels", detail)
    return Finding("ok", f"{with_own.name}'s pixels", detail)


def _effect(
    opened: OpenStage, with_own: Reader, with_blank: Reader, own: Tensor, blank: Tensor, other: Tensor, *, alone: bool
) -> Finding:
    """How much the answers' loss depends on the pixels."""
    name = with_own.name
    effect = max((blank - own).abs().max().item(), (other - own).abs().max().item())
    detail = f"nats per answer token: {own.mean():.4f} with its image, {blank.mean():.4f} blank, {other.mean():.4f} with another's"
    if effect < _NO_EFFECT:
        where = (
            "its vision encoder gives the same features for all images"
            if _same_features(opened, with_own, with_blank)
            else ("its features differ, and what comes after them ignores that")
        )
        return Finding(
            "failed", f"{name} sees images", f"{detail}: the pixels change nothing, so the model is blind; {where}"
        )
    if name == "teacher" and not alone:
        gain = other - own
        error = gain.std().item() / math.sqrt(len(gain))
        detail += f"; the right one helps by {gain.mean():.2f} ± {error:.2f}"
        if own.mean() >= blank.mean() or gain.mean() < _HELPS * error:
            why = "less than chance explains, on this data. Are the weights of its vision encoder trained, its processor its own?"
            return Finding("warning", f"{name} sees images", f"{detail}: {why}")
    return Finding("ok", f"{name} sees images", detail)


@torch.no_grad()
def _same_features(opened: OpenStage, one: Reader, other: Reader) -> bool:
    with autocast(opened):
        ours, theirs = one.pathway.see(one.batch), other.pathway.see(other.batch)
    assert ours is not None
    assert theirs is not None
    return bool((ours - theirs).abs().max() <= _SAME_FEATURES * ours.abs().max())


def _knowledge(opened: OpenStage, teacher: Reader, own: Float[Tensor, " answers"]) -> Iterator[Finding]:
    """A teacher that is worse than guessing was trained with another tokenizer or template, or not at all."""
    guess = math.log(opened.pair.vocabulary)
    if own.mean() >= guess:
        detail = f"{own.mean():.2f} nats per answer token, and guessing among {opened.pair.vocabulary:,} ids costs {guess:.2f}"
        why = "is its tokenizer, its chat template another than it was trained with?"
        yield Finding("warning", "teacher knows the answers", f"{detail}: {why}")


def _normalisation(
    opened: OpenStage, rows: list[dict], teacher: Reader, own: Float[Tensor, " answers"]
) -> Iterator[Finding]:
    """The pixels are normalised as they were when the teacher was trained, as far as its answers tell."""
    collator = opened.collator.teacher if isinstance(opened.collator, PairCollator) else opened.session.collator
    processor: Any = collator.processor
    settings = processor.image_processor
    for name, (mean, std) in NORMALISATIONS.items():
        if torch.allclose(
            torch.tensor([settings.image_mean, settings.image_std]), torch.tensor([mean, std]), atol=1e-3
        ):
            continue
        with _normalised(settings, mean, std):
            batch = collate(opened, rows)
        gain = own - answer_losses(opened, teacher.pathway, batch.get("teacher", batch))
        error = gain.std().item() / math.sqrt(len(gain))
        if gain.mean().item() > max(_NATS, _ERRORS * error):
            detail = (
                f"normalised with mean {settings.image_mean} and std {settings.image_std}; with {name}'s {mean} and {std} the teacher's "
                f"answers are {gain.mean():.3f} ± {error:.3f} nats per token better: it was trained with another image processor"
            )
            yield Finding("warning", "normalisation", detail)
            return
    yield Finding(
        "ok", "normalisation", f"no other that is in use suits the teacher better than mean {settings.image_mean}"
    )


@contextmanager
def _normalised(settings: Any, mean: list[float], std: list[float]) -> Iterator[None]:
    """The image processor with another mean and standard deviation."""
    kept = settings.image_mean, settings.image_std
    settings.image_mean, settings.image_std = mean, std
    try:
        yield
    finally:
        settings.image_mean, settings.image_std = kept
