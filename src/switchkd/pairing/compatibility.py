"""What of two models fits, read from their configs alone: before any weight is loaded."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from switchkd.models.capture import SWITCH, Site, Switched, learned_by_vision_alone
from switchkd.models.families import Family
from switchkd.models.families.family import LABELS
from switchkd.names import VisualWeights
from switchkd.signals import Route

#: fits: the same. bridge: the switch needs a bridge. own inputs: each model reads images and text in its own way. shared ids: the ids that
#: both have are compared. aligned: answers are matched by their text. refused for the switch: all but the switch can be trained. refused:
#: there is no way.
Verdict = Literal["fits", "bridge", "own inputs", "shared ids", "aligned", "refused for the switch", "refused"]

#: What matters to the inputs alone; other sizes than these and the vocabulary are those of the visual features.
_INPUTS = ("image_size", "image_token_id")
WIDTH, ROWS = LABELS["feature_width"], LABELS["vocabulary_rows"]


@dataclass(frozen=True)
class Difference:
    """One thing in which student and teacher differ, or in which they could and do not, with both values."""

    what: str
    student: object
    teacher: object
    verdict: Verdict
    detail: str = ""

    def __str__(self) -> str:
        values = f"{self.student}" if self.student == self.teacher else f"{self.student} and {self.teacher}"
        return f"{self.what}: {values}" + (f" ({self.detail})" if self.detail else "")

    @property
    def separate_inputs(self) -> bool:
        """Whether each model must therefore read its own images and text."""
        return self.verdict in ("own inputs", "aligned") or (self.verdict == "bridge" and self.what != WIDTH)


def compare(student: Family, teacher: Family) -> list[Difference]:
    """What the configs of two models say about a pair."""
    kinds = (student.model_type, teacher.model_type)
    differences = [Difference("family", *kinds, "fits")]
    if kinds[0] != kinds[1]:
        differences = [Difference("family", *kinds, "bridge", "features meet as pictures")]
    for size, label in LABELS.items():
        values = getattr(student.geometry, size), getattr(teacher.geometry, size)
        if None not in values:
            differences.append(Difference(label, *values, *_compared(size, *values)))
    return [*differences, _tiles(student, teacher), _encoders(student, teacher)]


def raise_if_incompatible(
    differences: Iterable[Difference],
    needs: Collection[Route | Site | VisualWeights],
    *,
    bridge: bool,
    pair: str = "student and teacher",
) -> None:
    """Raise ValueError, with both values, for what cannot be trained.

    Args:
        differences: what `compare` and the processors say about the pair.
        needs: what the method asks for.
        bridge: whether the student's visual features may go over a bridge to the teacher.
        pair: how the message calls the two.
    """
    chosen = sorted((need for need in needs if isinstance(need, Site)), key=str)
    sites = [(site, {LABELS.get(what, what) for what in site.alike}) for site in chosen]
    crossing = "switch" in needs or any(site.bridged for site, _ in sites)
    has_switch = learned_by_vision_alone(needs) == SWITCH
    without = "set the method's switch to 0" if has_switch else "choose a method that does not compare them"
    for difference in differences:
        for site, alike in sites:
            if difference.what in alike and difference.verdict != "fits" and not site.bridged:
                raise ValueError(
                    f"{pair} differ in {difference.what}: {difference.student} and {difference.teacher}, and the method compares {site} "
                    "one by one: choose a student with the teacher's, or another method"
                )
        if difference.verdict == "refused":
            raise ValueError(f"{pair} differ in {difference}: choose another student or teacher")
        if crossing and difference.verdict == "refused for the switch":
            raise ValueError(f"{pair} differ in {difference}: choose another student, or {without}")
        if crossing and difference.verdict == "bridge" and not bridge:
            raise ValueError(
                f"{pair} differ in {difference}: give the pair a bridge (in a recipe, `pair: {{bridge: auto}}`), choose a student with the "
                f"teacher's, or {without}"
            )


def check_layers(needs: Collection[Route | Site | VisualWeights], teacher: Family) -> None:
    """Raise ValueError, with both numbers, for a switch through more layers than the teacher's language model has."""
    layers = teacher.config.text_config.num_hidden_layers
    for site in needs:
        if isinstance(site, Switched) and site.layers > layers:
            raise ValueError(
                f"the switch is to run through {site.layers} layers of the teacher's language model, which has {layers}: set the method's "
                f"switch_layers to {layers} at most, or leave it out for a switch that runs to the answers"
            )


def _compared(size: str, student: int, teacher: int) -> tuple[Verdict, str]:
    if student == teacher:
        return "fits", ""
    if size == "vocabulary_rows":
        return "shared ids", ""
    if size in _INPUTS:
        return "own inputs", ""
    return "bridge", "translated by a linear layer" if size == "feature_width" else "resampled to the teacher's grid"


def _tiles(student: Family, teacher: Family) -> Difference:
    kinds = ["whole" if family.geometry.tokens_per_tile is None else "cut into tiles" for family in (student, teacher)]
    if kinds[0] != kinds[1]:
        detail = "a part of an image has no place among the features of the whole"
        return Difference("images", kinds[0], kinds[1], "refused for the switch", detail)
    detail = "" if kinds[0] == "whole" else "as many tiles in both: looked at in every batch"
    return Difference("images", kinds[0], kinds[1], "fits", detail)


def _encoders(student: Family, teacher: Family) -> Difference:
    configs = [
        {key: value for key, value in family.config.vision_config.to_dict().items() if key not in _NAMES}
        for family in (student, teacher)
    ]
    layers = [vision.get("num_hidden_layers", vision.get("depth", "unknown")) for vision in configs]
    detail = (
        "one architecture: if both hold the same weights, z_SW = z_T, and the switch only tethers a V_S that is trained"
    )
    same = configs[0] == configs[1]
    return Difference("layers of the vision encoder", layers[0], layers[1], "fits", detail if same else "")


#: Entries of a vision config that say nothing about what it computes.
_NAMES = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
