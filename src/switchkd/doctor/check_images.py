"""Whether the images reach the answers, in both models: as many features as image tokens, and other answers for other images."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from switchkd.batch import Inputs
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import SEARCHED, Examined, Model
from switchkd.models.capture import learned_by_vision_alone
from switchkd.pairing.reading import OwnInputs

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


def tokens_and_features(examined: Examined) -> Iterator[Finding]:
    """In the longest row with images, or with videos, there are as many of their tokens as features to put in their place."""
    if not (examined.has_images or examined.has_videos):
        return
    name_of_row = f"row {examined.rows[0]['id']!a}"
    for name, pathway, inputs in examined.models(examined.batch(examined.samples[:1])):
        geometry = pathway.family.geometry
        if problem := _wrong_size(inputs, geometry.image_size):
            yield Finding("failed", f"{name}'s image tokens", f"{name_of_row}: {problem}")
            continue
        tokens = int(pathway.family.is_visual(inputs.tokens).sum())
        with torch.no_grad(), examined.autocast():
            if (seen := pathway.see(inputs)) is None:
                detail = f"{name_of_row} has images, but they do not reach the vision encoder"
                yield Finding("failed", f"{name}'s image tokens", detail)
                continue
            assert inputs.shown is not None
            projected = pathway.family.project(pathway.model, seen, inputs.shown)
        features = sum(len(pathway.family.tokens_of(one)) for one in projected.values())
        detail = (
            f"{name_of_row} has {tokens} image tokens and {features} features in its {inputs.tokens.shape[1]} tokens"
        )
        if tokens == features:
            yield Finding("ok", f"{name}'s image tokens", detail)
        else:
            why = (
                "a truncated image, or a processor of another model"
                if tokens < features
                else "a processor of another model"
            )
            yield Finding("failed", f"{name}'s image tokens", f"{detail}: {why}")


def _wrong_size(inputs: Inputs, side: int | None) -> str | None:
    """Where all images or tiles have one size, the processor must make it."""
    if side is None or inputs.images is None:
        return None
    height, width = inputs.images["pixel_values"].shape[-2:]
    if (height, width) == (side, side):
        return None
    return f"its images are {height} x {width} pixels and the model reads {side} x {side}: the processor belongs to another model"


def effects(examined: Examined) -> Iterator[Finding]:
    """The answers of both models depend on the pixels, and the teacher's are better with the right image than with another or none."""
    if examined.has_videos:
        yield from _video_effects(examined)
        return
    if not examined.has_images:
        level: Level = "failed" if learned_by_vision_alone(examined.context.method.needs) else "warning"
        detail = f"none in the first {SEARCHED} rows: the vision encoder has nothing to learn from"
        yield Finding(level, "images", detail)
        return
    bright = any(image.convert("L").getextrema()[1] > 64 for image in examined.images)  # type: ignore[operator]
    with_own = examined.models(examined.batch())
    with_others = examined.models(examined.batch(examined.samples_with_other_images))
    for own, other in zip(with_own, with_others, strict=True):
        blank = own._replace(inputs=_with_pixels(own.inputs, _blank(_images_of(examined, own), own.inputs)))
        yield _pixels(own, blank, bright=bright)
        losses = [examined.answer_losses(model.pathway, model.inputs) for model in (own, blank, other)]
        finding = _effect(examined, own, blank, *losses, alone=len(examined.images) == 1)
        yield finding
        if own.name == "teacher" and finding.level == "ok":
            yield from _knowledge(examined, losses[0])
            yield from _normalisation(examined, own, losses[0])


def _video_effects(examined: Examined) -> Iterator[Finding]:
    """The answers of both models depend on the frames: they are others for their negatives."""
    for model in examined.models(examined.batch()):
        media = {
            kind: {name: -one if name.startswith("pixel_values") else one for name, one in of_kind.items()}
            for kind, of_kind in model.inputs.media.items()
        }
        own, other = (
            examined.answer_losses(model.pathway, inputs)
            for inputs in (model.inputs, model.inputs._replace(media=media))
        )
        effect = (own - other).abs().max().item()
        detail = f"nats per answer token: {own.mean():.4f} with its videos, {other.mean():.4f} with their negatives"
        if effect < _NO_EFFECT:
            yield Finding(
                "failed", f"{model.name} sees videos", f"{detail}: the frames change nothing, so the model is blind"
            )
        else:
            yield Finding("ok", f"{model.name} sees videos", detail)


def _images_of(examined: Examined, model: Model) -> Any:
    """The image processor of what a model reads."""
    teacher = examined.context.teacher
    reading = None if teacher is None else teacher.reading
    own = model.name == "teacher" and isinstance(reading, OwnInputs)
    processor: Any = (
        reading.reader.processor if own and isinstance(reading, OwnInputs) else examined.context.run.processor
    )
    return processor.image_processor


def _channels(pixels: Tensor) -> Tensor:
    """A view of what image processors make as [..., 3, values]: images or tiles [..., 3, height, width], or patches in a row."""
    return pixels.flatten(-2) if pixels.ndim > 2 else pixels.unflatten(-1, (3, -1))


def _with_pixels(inputs: Inputs, pixels: Tensor) -> Inputs:
    """The inputs with other pixels in their images or tiles; those that are zero everywhere only fill up the batch, and stay so."""
    assert inputs.images is not None
    own = inputs.images["pixel_values"]
    if own.ndim > 2:
        pixels = torch.where(own.flatten(-3).any(dim=-1)[..., None, None, None], pixels, own)
    return inputs._replace(media={**inputs.media, "image": {**inputs.images, "pixel_values": pixels}})


def _statistics(images: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that the pixels were normalised with, one of each for a channel."""
    normalised = getattr(images, "do_normalize", True)
    mean, std = (images.image_mean, images.image_std) if normalised else ([0.0] * 3, [1.0] * 3)
    return like.new_tensor(mean)[:, None], like.new_tensor(std)[:, None]


def _blank(images: Any, inputs: Inputs) -> Tensor:
    """The pixels of black images of the same sizes."""
    assert inputs.images is not None
    pixels = inputs.images["pixel_values"]
    mean, std = _statistics(images, pixels)
    return (-mean / std).expand_as(_channels(pixels)).reshape(pixels.shape).contiguous()


def _pixels(own: Model, blank: Model, *, bright: bool) -> Finding:
    """Pixels are scaled once: not left at 0 to 255, not divided twice."""
    assert own.inputs.images is not None
    assert blank.inputs.images is not None
    pixels, black = (model.inputs.images["pixel_values"].float() for model in (own, blank) if model.inputs.images)
    largest, contrast = pixels.abs().max().item(), (pixels - black).abs().max().item()
    detail = f"up to {largest:.3g} in size, {contrast:.3g} away from black"
    if largest > _LARGEST_PIXEL:
        detail += ": they are not scaled to 0 … 1 before they are normalised; see do_rescale of the image processor"
        return Finding("failed", f"{own.name}'s pixels", detail)
    if bright and contrast < 0.05:
        detail += ": all images are nearly black; is rescale_factor applied twice?"
        return Finding("failed", f"{own.name}'s pixels", detail)
    return Finding("ok", f"{own.name}'s pixels", detail)


def _effect(
    examined: Examined, with_own: Model, with_blank: Model, own: Tensor, blank: Tensor, other: Tensor, *, alone: bool
) -> Finding:
    """How much the answers' loss depends on the pixels."""
    name = with_own.name
    effect = max((blank - own).abs().max().item(), (other - own).abs().max().item())
    detail = f"nats per answer token: {own.mean():.4f} with its image, {blank.mean():.4f} blank, {other.mean():.4f} with another's"
    if effect < _NO_EFFECT:
        where = (
            "its vision encoder gives the same features for all images"
            if _same_features(examined, with_own, with_blank)
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
def _same_features(examined: Examined, one: Model, other: Model) -> bool:
    with examined.autocast():
        features = [model.pathway.see(model.inputs) for model in (one, other)]
    assert features[0] is not None
    assert features[1] is not None
    return bool((features[0] - features[1]).abs().max() <= _SAME_FEATURES * features[0].abs().max())


def _knowledge(examined: Examined, own: Float[Tensor, " answers"]) -> Iterator[Finding]:
    """A teacher that is worse than guessing was trained with another tokenizer or template, or not at all."""
    vocabulary = examined.context.pair.vocabulary
    guess = math.log(vocabulary)
    if own.mean() >= guess:
        detail = f"{own.mean():.2f} nats per answer token, and guessing among {vocabulary:,} ids costs {guess:.2f}"
        why = "is its tokenizer, its chat template another than it was trained with?"
        yield Finding("warning", "teacher knows the answers", f"{detail}: {why}")


def _normalisation(examined: Examined, teacher: Model, own: Float[Tensor, " answers"]) -> Iterator[Finding]:
    """The pixels are normalised as they were when the teacher was trained, as far as its answers tell."""
    settings = _images_of(examined, teacher)
    assert teacher.inputs.images is not None
    pixels = teacher.inputs.images["pixel_values"]
    mean, std = _statistics(settings, pixels)
    for name, statistics in NORMALISATIONS.items():
        other_mean, other_std = (pixels.new_tensor(values)[:, None] for values in statistics)
        if torch.allclose(torch.cat([mean, std]), torch.cat([other_mean, other_std]), atol=1e-3):
            continue
        changed = ((_channels(pixels) * std + mean - other_mean) / other_std).reshape(pixels.shape)
        gain = own - examined.answer_losses(teacher.pathway, _with_pixels(teacher.inputs, changed))
        error = gain.std().item() / math.sqrt(len(gain))
        if gain.mean().item() > max(_NATS, _ERRORS * error):
            detail = (
                f"normalised with mean {settings.image_mean} and std {settings.image_std}; with {name}'s {statistics[0]} and "
                f"{statistics[1]} the teacher's answers are {gain.mean():.3f} ± {error:.3f} nats per token better: it was trained with "
                "another image processor"
            )
            yield Finding("warning", "normalisation", detail)
            return
    yield Finding(
        "ok", "normalisation", f"no other that is in use suits the teacher better than mean {settings.image_mean}"
    )
