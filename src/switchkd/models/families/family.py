"""What the project must know about a family of vision-language models: a few names. One implementation serves all families."""

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import isqrt
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from switchkd.types import Batch, Sizes

#: V(x): what the projector receives. [images or tiles, tokens, width], or [patches, width] where images differ in size.
Features: TypeAlias = Float[Tensor, "*tokens width"]
#: V(x) of one image, tile or video frame, as a picture: [height, width in patches, feature width].
Map: TypeAlias = Float[Tensor, "_ _ width"]


@dataclass(frozen=True)
class Family:
    """Where vision encoder V, projector P and language model L are in the models of one `model_type`.

    Two doors of transformers carry the implementation: `get_image_features` runs V and P, and `mm_encoder_outputs` takes P(V(x)) in
    the place of pixels. What happens before the projector and after it in the language model stays the family's own code.
    """

    model_type: str
    #: The parts by their names in recipes → dotted names inside the whole model, of modules or single parameters.
    parts: dict[str, tuple[str, ...]]
    #: What `get_image_features` takes of a batch.
    images: tuple[str, ...] = ("pixel_values",)
    #: What else of a batch the language model takes: its positions and masks depend on it.
    context: tuple[str, ...] = ()
    #: Members that the test suite runs, by `model_type`: part of the config → names. Others are refused.
    tested: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Whether the model takes P(V(x)) as one tensor; otherwise it is a list.
    one_tensor: bool = False
    #: Whether the model caps its logits at `final_logit_softcapping` of its text config.
    softcapped: bool = False

    def check(self, config: PretrainedConfig) -> None:
        """Raise ValueError where the family has members that this project has not been tested with."""
        for part, known in self.tested.items():
            found = getattr(config, part).model_type
            if found not in known:
                part = {"vision_config": "vision encoder", "text_config": "language model"}[part]
                raise ValueError(
                    f"{self.model_type} with {part} {found!r} has not been tested; supported: {', '.join(known)}"
                )

    # ---- the three parts

    def part(self, model: PreTrainedModel, name: str) -> list[nn.Module]:
        """The modules of one part of `model`."""
        return [operand for operand in self._operands(model, name) if isinstance(operand, nn.Module)]

    def parameters(self, model: PreTrainedModel, name: str) -> dict[str, nn.Parameter]:
        """The parameters of one part of `model`, those that are no module's (`image_newline`) included."""
        found: dict[str, nn.Parameter] = {}
        for path, operand in zip(self.parts[name], self._operands(model, name), strict=True):
            if isinstance(operand, nn.Parameter):
                found[path] = operand
            else:
                found |= {f"{path}.{key}": parameter for key, parameter in operand.named_parameters()}
        return found

    def _operands(self, model: PreTrainedModel, name: str) -> list[nn.Module | nn.Parameter]:
        found: list[nn.Module | nn.Parameter] = []
        for path in self.parts[name]:
            parent, _, leaf = path.rpartition(".")
            found.append(getattr(model.get_submodule(parent), leaf))
        return found

    def doors(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules through which V(x) enters the projector; several in Qwen3-VL, where layers of V are projected apart."""
        modules = self.part(model, "projector")
        return [door for module in modules for door in (module if isinstance(module, nn.ModuleList) else [module])]

    # ---- V and P

    def see(self, model: PreTrainedModel, batch: Batch) -> Features:
        """V(x): the family's own encoding runs, and what arrives at the projector is kept; several doors side by side, along the width."""
        doors = self.doors(model)
        entering: dict[nn.Module, Tensor] = {}

        def note(door: nn.Module, inputs: tuple[Any, ...]) -> None:
            entering[door] = inputs[0]

        hooks = [door.register_forward_pre_hook(note) for door in doors]
        try:
            model.model.get_image_features(**self._images(batch), return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        return entering[doors[0]] if len(doors) == 1 else torch.cat([entering[door] for door in doors], dim=-1)

    def project(self, model: PreTrainedModel, features: Features, batch: Batch) -> BaseModelOutputWithPooling:
        """P(V(x)), in the form that the family's forward takes as `mm_encoder_outputs["image"]`."""
        doors = self.doors(model)
        weights = list(doors[0].parameters())
        dtype = next(
            (weight.dtype for weight in weights if weight.is_floating_point()), model.dtype
        )  # 4-bit weights are integers
        entering = features.to(weights[0].device, dtype).chunk(len(doors), dim=-1)
        projected = [self.enter(door, part.contiguous(), batch) for door, part in zip(doors, entering, strict=True)]
        return self.pack(model, projected, batch)

    def enter(self, door: nn.Module, features: Features, batch: Batch) -> Tensor:
        """One door of the projector."""
        return door(features)

    def pack(self, model: PreTrainedModel, projected: list[Tensor], batch: Batch) -> BaseModelOutputWithPooling:
        """What the family does between the projector and the language model; here nothing but the form."""
        (only,) = projected
        output: Any = only if self.one_tensor else [only.flatten(0, -2)]
        return BaseModelOutputWithPooling(pooler_output=output)

    def _images(self, batch: Batch) -> dict[str, Any]:
        return {name: value for name, value in batch.items() if name in self.images}

    def beside(self, batch: Batch) -> dict[str, Any]:
        """What the language model takes of `batch` besides tokens, mask and features."""
        return {name: value for name, value in batch.items() if name in self.context}

    def softcap(self, config: PretrainedConfig) -> float | None:
        """c, where the family's logits are c·tanh(z / c) (PaliGemma 2); None where they are the head's own."""
        return getattr(config.get_text_config(), "final_logit_softcapping", None) if self.softcapped else None

    # ---- what belongs to which row of the batch

    def tokens_of(self, projected: BaseModelOutputWithPooling) -> Float[Tensor, "tokens width"]:
        """P(V(x)) of all images, in the order of their placeholders."""
        output: Any = projected.pooler_output
        parts = [output] if isinstance(output, Tensor) else output
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    def pictures_of_rows(
        self, config: PretrainedConfig, batch: Batch, projected: BaseModelOutputWithPooling, tokens: list[int]
    ) -> list[int]:
        """How many pictures V sees of each row, from the number of its visual tokens: a picture has as many as its area says."""
        return share([height * width for height, width in self.shapes(config, batch)], tokens)

    def features_of_rows(
        self, config: PretrainedConfig, features: Features, batch: Batch, pictures: list[int]
    ) -> list[Float[Tensor, "tokens width"]]:
        """V(x) of each row, from the number of its pictures."""
        if features.ndim == 3:
            return [part.flatten(0, 1) for part in features.split(pictures)]
        areas = iter([height * width for height, width in self.shapes(config, batch)])
        return list(features.split([sum(next(areas) for _ in range(count)) for count in pictures]))

    def language_sizes(self, config: PretrainedConfig) -> Sizes:
        """Of the language model."""
        return Sizes(width=config.text_config.hidden_size, heads=config.text_config.num_attention_heads)

    def first_attention(self, model: PreTrainedModel) -> nn.Module:
        """The self attention of the language model's first layer."""
        return self.part(model, "language")[0].get_submodule("layers.0.self_attn")

    # ---- V(x) as pictures

    def maps(self, config: PretrainedConfig, features: Features, batch: Batch) -> list[Map]:
        """`features` as one picture for each image (or tile, or frame), rows from the top, columns from the left."""
        side = isqrt(features.shape[1])
        if side * side != features.shape[1]:
            raise ValueError(
                f"{features.shape[1]} visual tokens per image make no square: the class token is among them"
            )
        return list(features.unflatten(1, (side, side)))

    def unmaps(self, config: PretrainedConfig, maps: list[Map], batch: Batch) -> Features:
        """The inverse of `maps`: the features of a model with this `config` that reads `batch`."""
        return torch.stack(maps).flatten(1, 2)

    def shapes(self, config: PretrainedConfig, batch: Batch) -> list[tuple[int, int]]:
        """Height and width of each of the `maps` that a model with this `config` makes of `batch`, without running it."""
        side = self.geometry(config)["grid side"]
        return [(side, side)] * self.tiles(config, batch)

    def tiles(self, config: PretrainedConfig, batch: Batch) -> int:
        """How many pictures the vision encoder sees in `batch`."""
        return len(batch["pixel_values"])

    def blank(self, config: PretrainedConfig) -> Batch:
        """The smallest image that V can see, of ones: what reaches the features can be found out with it."""
        side = one(config.vision_config.image_size)
        return cast(Batch, {"pixel_values": torch.ones(1, 3, side, side)})

    # ---- sizes, from the config alone

    def geometry(self, config: PretrainedConfig) -> dict[str, int]:
        """What student and teacher of one family must share; of these only the feature width matters to the switch alone.

        Every family has `feature width`, `vocabulary rows` and `image token id`; `visual tokens per image` where all images have as
        many, `visual tokens per tile` where images are cut into tiles, else the sizes of a patch from which the number follows.
        """
        return self.sizes(config) | {
            "vocabulary rows": config.text_config.vocab_size,
            "image token id": config.image_token_id,
        }

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """The sizes of vision encoder and projector, for `geometry`."""
        raise NotImplementedError(f"{self.model_type} does not say its sizes")


def share(sizes: list[int], parts: list[int]) -> list[int]:
    """How many of the `sizes`, from the first on, fill each of the `parts`, which are in another unit.

    Raises:
        ValueError: where a part ends within one of them.
    """
    ends = [0, *accumulate(sizes)]
    whole = sum(parts)
    found = [0]
    for end in accumulate(parts):
        wanted, rest = divmod(end * ends[-1], max(whole, 1))
        if rest or wanted not in ends:
            raise ValueError(f"rows of {parts} visual tokens do not end where images of the sizes {sizes} do")
        found.append(ends.index(wanted))
    return [after - before for before, after in pairwise(found)]


def one(size: Any) -> int:
    """A config's size of a square, which may be written as a number or as a pair."""
    return int(size if isinstance(size, int) else size[0])
