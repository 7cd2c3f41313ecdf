"""What of two models fits, read from their configs alone: before any weight is loaded."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from transformers import PretrainedConfig

from switchkd.models.families import family_of
from switchkd.types import Look, Need

#: fits: the same. bridge: the switch needs a bridge. own inputs: each model reads images and text in its own way. shared ids: the ids that
#: both have are compared. aligned: answers are matched by their text. refused for the switch: all but the switch can be trained. refused:
#: there is no way.
Verdict = Literal["fits", "bridge", "own inputs", "shared ids", "aligned", "refused for the switch", "refused"]

#: What matters to the inputs alone; other sizes than these and the vocabulary are those of the visual features.
_INPUTS = ("image size in pixels", "image token id")
WIDTH, ROWS = "feature width", "vocabulary rows"
_PATCHES = ("patch size in pixels", "frames in a patch")
_TOKENS = ("visual tokens per image", "visual tokens per tile", "merge size", *_PATCHES)
_TEXT = ("tokenizer", "chat template")
#: What must be the same in both models where a method compares them inside; what configs do not tell, the first batch does.
_ALIKE: dict[Look, tuple[str, ...]] = {
    "features": (WIDTH, "grid side", "window size in pixels", "deepstack layers", *_PATCHES),
    "projected": _TOKENS,
    "visual": _TOKENS,
    "text": _TEXT,
    "attention": (*_TOKENS, *_TEXT),
}


@dataclass(frozen=True)
class Item:
    """One thing in which student and teacher agree or not, with both values."""

    what: str
    student: object
    teacher: object
    verdict: Verdict
    detail: str = ""

    def __str__(self) -> str:
        values = f"{self.student}" if self.student == self.teacher else f"{self.student} and {self.teacher}"
        return f"{self.what}: {values}" + (f" ({self.detail})" if self.detail else "")


def compare(student: PretrainedConfig, teacher: PretrainedConfig) -> list[Item]:
    """What two configs say about a pair.

    Raises:
        ValueError: for a family, vision encoder or language model that is not supported.
    """
    for config in (student, teacher):
        family_of(config).check(config)
    ours, theirs = (family_of(config).geometry(config) for config in (student, teacher))
    items = [Item("family", student.model_type, teacher.model_type, "fits")]
    if student.model_type != teacher.model_type:
        items = [Item("family", student.model_type, teacher.model_type, "bridge", "features meet as pictures")]
    for what in ours:
        if what in theirs:
            same = ours[what] == theirs[what]
            items.append(Item(what, ours[what], theirs[what], *(("fits", "") if same else _differs(what))))
    return [*items, _tiles(ours, theirs), _towers(student, teacher)]


def refuse(items: Iterable[Item], needs: Collection[Need], *, bridge: bool, pair: str = "student and teacher") -> None:
    """Raise ValueError, with both values, for what cannot be trained.

    Args:
        items: what was found about the pair.
        needs: what the method asks for.
        bridge: whether the switch may go over a bridge.
        pair: how the message calls the two.
    """
    switch = "switch" in needs
    for item in items:
        for look, alike in _ALIKE.items():
            if look in needs and item.what in alike and item.verdict != "fits":
                raise ValueError(
                    f"{pair} differ in {item.what}: {item.student} and {item.teacher}, and the method compares {look} one by one: choose a "
                    "student with the teacher's, or another method"
                )
        if item.verdict == "refused":
            raise ValueError(f"{pair} differ in {item}: choose another student or teacher")
        if switch and item.verdict == "refused for the switch":
            raise ValueError(f"{pair} differ in {item}: choose another student, or set the method's switch to 0")
        if switch and item.verdict == "bridge" and not bridge:
            raise ValueError(
                f"{pair} differ in {item}: give the pair a bridge (in a recipe, `pair: {{bridge: auto}}`), choose a student with the "
                "teacher's, or set the method's switch to 0"
            )


def _differs(what: str) -> tuple[Verdict, str]:
    if what == ROWS:
        return "shared ids", ""
    if what in _INPUTS:
        return "own inputs", ""
    return "bridge", "translated by a linear layer" if what == WIDTH else "resampled to the teacher's grid"


def _tiles(ours: dict[str, int], theirs: dict[str, int]) -> Item:
    mine, other = ("cut into tiles" if "visual tokens per tile" in sizes else "whole" for sizes in (ours, theirs))
    if mine != other:
        detail = "a part of an image has no place among the features of the whole"
        return Item("images", mine, other, "refused for the switch", detail)
    return Item(
        "images", mine, other, "fits", "" if mine == "whole" else "as many tiles in both: looked at in every batch"
    )


def _towers(student: PretrainedConfig, teacher: PretrainedConfig) -> Item:
    ours, theirs = (
        {k: v for k, v in config.vision_config.to_dict().items() if k not in _NAMES} for config in (student, teacher)
    )
    mine, other = (vision.get("num_hidden_layers", vision.get("depth", "unknown")) for vision in (ours, theirs))
    detail = (
        "one architecture: if both hold the same weights, z_SW = z_T, and the switch only tethers a V_S that is trained"
    )
    return Item("layers of the vision encoder", mine, other, "fits", detail if ours == theirs else "")


#: Entries of a vision config that say nothing about what it computes.
_NAMES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
