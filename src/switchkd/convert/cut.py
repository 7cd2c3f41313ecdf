"""A shallower copy of a model: some of its layers, evenly chosen, and everything else as it is."""

import re
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from switchkd.models import Pathway

#: A part's section of a config.
SECTIONS = {"vision": "vision_config", "language": "text_config"}
#: What configs call the number of layers.
_DEPTHS = ("num_hidden_layers", "depth")


def even(layers: int, kept: int) -> list[int]:
    """`kept` of the indices 0 … layers − 1, evenly spaced, the first and the last among them."""
    return [(2 * index * (layers - 1) + kept - 1) // (2 * (kept - 1)) for index in range(kept)]


def cut(pathway: Pathway, keep: dict[str, int]) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """Config and tensors of `pathway`'s model with fewer layers; `keep`: vision or language → how many remain.

    Layers above the one that the visual features are taken from feed nothing; they stay, so that the features are again taken below them.

    Raises:
        ValueError: if a part is not one plain stack of layers, by name.
    """
    config: dict[str, Any] = pathway.model.config.to_dict()
    tensors = dict(pathway.model.state_dict())
    for part, kept in keep.items():
        path, stack = _stack(pathway, part)
        section = config[SECTIONS[part]]
        key = _depth(section, len(stack), pathway, part)
        blind = _blind(pathway, stack) if part == "vision" else 0
        if not blind + 2 <= kept <= len(stack):
            raise ValueError(
                f"{kept} of the {len(stack)} {part} layers: choose {blind + 2} to {len(stack)}. The first and the last stay"
                + (f", and {blind} above the features" if blind else "")
            )
        chosen = [*even(len(stack) - blind, kept - blind), *range(len(stack) - blind, len(stack))]
        section[key] = kept
        if "layer_types" in section:
            section["layer_types"] = [section["layer_types"][layer] for layer in chosen]
        tensors = _renumber(tensors, path, chosen)
    return type(pathway.model.config).from_dict(config), tensors


def check_features(teacher: Pathway, student: Pathway) -> None:
    """Raise ValueError unless the features are taken as far below the last layer as before the cut."""
    before = _blind(teacher, _stack(teacher, "vision")[1])
    try:
        after = str(_blind(student, _stack(student, "vision")[1]))
    except IndexError:  # there is no such layer any more
        after = "nowhere"
    if str(before) != after:
        raise ValueError(
            f"the features leave the vision encoder {before} layers before its end, and {after} after the cut: the config counts the layer "
            "from below. Count it from above (vision_feature_layer: -2) and cut again"
        )


def _stack(pathway: Pathway, part: str) -> tuple[str, nn.ModuleList]:
    """The one list of layers in a part, with its dotted name in the model."""
    inside = {id(module) for module in pathway.part(part)}
    lists: dict[str, nn.ModuleList] = {}
    for top, outer in pathway.model.named_modules():
        if id(outer) not in inside:
            continue
        for name, module in outer.named_modules(prefix=top):
            if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{known}.") for known in lists):
                lists[name] = module
    if len(lists) != 1:
        raise ValueError(
            f"the {part} part of a {pathway.model.config.model_type} cannot be cut: it is not one stack of layers "
            f"({', '.join(lists) or 'none'})"
        )
    return next(iter(lists.items()))


def _depth(section: dict[str, Any], layers: int, pathway: Pathway, part: str) -> str:
    """The config's name for the number of layers, after checking that the config says nothing about single layers."""
    numbered = [
        key
        for key, value in section.items()
        if isinstance(value, list) and value and key != "layer_types" and re.search(r"index|layer|block", key)
    ]
    if numbered:
        raise ValueError(
            f"the {part} part of a {pathway.model.config.model_type} cannot be cut: it has layers with roles of their own "
            f"({', '.join(numbered)})"
        )
    for key in _DEPTHS:
        if section.get(key) == layers:
            return key
    raise ValueError(
        f"{SECTIONS[part]} of this {pathway.model.config.model_type} does not say that it has {layers} layers"
    )


def _blind(pathway: Pathway, stack: nn.ModuleList) -> int:
    """How many layers at the end of the stack do not reach the features."""
    blind = {id(parameter) for parameter in pathway.blind_parameters().values()}
    return sum(all(id(parameter) in blind for parameter in layer.parameters()) for layer in stack)


def _renumber(tensors: dict[str, Tensor], path: str, chosen: list[int]) -> dict[str, Tensor]:
    places = {old: new for new, old in enumerate(chosen)}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{path}."):
            kept[name] = tensor
            continue
        layer, _, rest = name.removeprefix(f"{path}.").partition(".")
        if int(layer) in places:
            kept[f"{path}.{places[int(layer)]}.{rest}"] = tensor
    return kept
