"""What the project must know about a family of vision-language models: a few names. One implementation serves all families."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate, pairwise
from typing import Any, ClassVar, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from switchkd.batch import Inputs, Media
from switchkd.models.coarse import coarse
from switchkd.names import Kind
from switchkd.signals import Sizes

#: V(x): what the projector receives. [images or tiles, tokens, width], or [patches, width] where images differ in size.
Features: TypeAlias = Float[Tensor, "*tokens width"]
#: V(x) of one image, tile or pair of video frames: [height, width in patches, feature width].
FeatureGrid: TypeAlias = Float[Tensor, "_ _ _"]
#: P(V(x)) as a family's forward takes it: `pooler_output` is one tensor, or a list of them.
Projected: TypeAlias = BaseModelOutputWithPooling
#: What something is called → names inside a model or config.
Names: TypeAlias = Mapping[str, tuple[str, ...]]


#: Height and width in pixels of what stands for a usual picture.
PHOTOGRAPH = (480, 640)


@dataclass(frozen=True)
class Geometry:
    """Sizes that two models may have to share, from the config alone; None where the family has no such size.

    The grid is what the projector receives of an image or tile, its side in patches. Images and windows are measured in pixels.
    """

    feature_width: int
    vocabulary_rows: int
    image_token_id: int
    grid_side: int | None = None
    image_size: int | None = None
    tokens_per_image: int | None = None
    tokens_per_tile: int | None = None
    patch_size: int | None = None
    frames_per_patch: int | None = None
    merge_size: int | None = None
    window_size: int | None = None
    deepstack_layers: int | None = None


#: How messages and tables call the fields of `Geometry`, in the order in which they are listed.
LABELS = {
    "feature_width": "feature width",
    "tokens_per_image": "visual tokens per image",
    "tokens_per_tile": "visual tokens per tile",
    "grid_side": "grid side",
    "image_size": "image size in pixels",
    "patch_size": "patch size in pixels",
    "frames_per_patch": "frames in a patch",
    "merge_size": "merge size",
    "window_size": "window size in pixels",
    "deepstack_layers": "deepstack layers",
    "vocabulary_rows": "vocabulary rows",
    "image_token_id": "image token id",
}


class Family(ABC):
    """Where vision encoder V, projector P and language model L are in the models of one `model_type`, bound to the config of a model.

    Two entrances of transformers are used: `get_image_features` runs V and P, and `mm_encoder_outputs` takes P(V(x)) in
    the place of pixels. What happens before the projector and after it in the language model stays the family's own code.

    Args:
        config: of the model.

    Raises:
        ValueError: for a vision encoder or language model that the project has not been tested with.
    """

    model_type: ClassVar[str]
    #: The parts by their names in recipes → dotted names inside the whole model, of modules or single parameters.
    parts: ClassVar[Names]
    #: What `get_image_features` takes of the media.
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    #: What the model takes of videos; () where their frames are images to it, and None where it was made for no videos.
    video_inputs: ClassVar[tuple[str, ...] | None] = None
    #: Along which axis the tiles of an image, or the frames of a video, stand in `pixel_values`.
    tile_axis: ClassVar[int] = 0
    #: What else the language model takes of media and token types: its positions and masks depend on it.
    language_context: ClassVar[tuple[str, ...]] = ()
    #: Names of the token types that are 1 on visual tokens of images, 2 on those of videos and 0 elsewhere.
    image_types: ClassVar[tuple[str, ...]] = ()
    #: Members that the test suite runs, by `model_type`: part of the config → names. Others are refused.
    tested: ClassVar[Names] = {}
    #: Whether V(x) is [patches of all images, width]; otherwise [images or tiles, tokens, width].
    one_sequence: ClassVar[bool] = False
    #: Whether the model takes P(V(x)) as one tensor; otherwise it is a list.
    one_tensor: ClassVar[bool] = False
    #: Whether padding on the right must be masked, because other tokens would see it.
    padding_mask: ClassVar[bool] = False
    #: Whether all parts must have one precision: images are brought to that of the vision encoder, in which the text then has to be.
    one_precision: ClassVar[bool] = False
    #: Why samples cannot share a packed row; None where they can.
    unpackable: ClassVar[str | None] = None
    #: Class names of the processors that serve the family.
    processors: ClassVar[tuple[str, ...]] = ()
    #: What stands for an image in a text, where a chat template takes texts alone; `<image>` is the image token.
    image_text: ClassVar[str] = "<image>\n"
    #: The chat template that is used where the processor has none that can be used. It writes `<image>` for the image token.
    template: ClassVar[str | None] = None
    template_name: ClassVar[str] = ""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        for part, tested in self.tested.items():
            name = getattr(config, part).model_type
            if name not in tested:
                called = {"vision_config": "vision encoder", "text_config": "language model"}[part]
                raise ValueError(
                    f"{self.model_type} with {called} {name!r} has not been tested; supported: {', '.join(tested)}"
                )

    # ---- text

    @classmethod
    def choose_template(cls, own: str | None, special: set[str]) -> tuple[str, str] | None:
        """Name and text of the chat template that replaces `own`, which cannot be used; None where the family has none that fits.

        Args:
            own: the processor's template; None where it has none.
            special: all tokens that were added to the tokenizer.
        """
        return None if cls.template is None else (cls.template_name, cls.template)

    @classmethod
    def as_processed(cls, text: str, image_token: str, bos_token: str, *, asked: bool) -> str:
        """A rendered conversation as the family's processor hands it to the tokenizer, whose images are still one token each.

        Args:
            text: what the chat template wrote.
            image_token: what it wrote for an image.
            bos_token: the tokenizer's; empty where it has none.
            asked: whether the conversation is to be answered.
        """
        return text

    @classmethod
    def token_types(
        cls, tokens: list[int], is_answer: list[bool], image_token_id: int, video_token_id: int | None = None
    ) -> dict[str, list[int]]:
        """The token types that the model reads, by the name of its argument."""
        kinds = {video_token_id: 2, image_token_id: 1}
        return {name: [kinds.get(token, 0) for token in tokens] for name in cls.image_types}

    def language_inputs(self, media: Media | None, types: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the language model takes besides tokens, mask and features."""
        given = {**(media or {}), **types}
        return {name: given[name] for name in self.language_context if name in given}

    def packed_positions(self, model: PreTrainedModel, inputs: Inputs) -> Int[Tensor, "*kinds batch sequence"]:
        """The positions of the tokens of packed rows, in the form that the model takes; they also tell it where samples begin."""
        assert inputs.positions is not None
        return inputs.positions

    # ---- the three parts

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027  # a family may leave it as it is
        """Make a model ready to be a pathway, once; nothing has to be done in most families."""

    def part(self, model: PreTrainedModel, name: str) -> list[nn.Module]:
        """The modules of one part of `model`."""
        return [operand for operand in self._operands(model, name) if isinstance(operand, nn.Module)]

    def parameters(self, model: PreTrainedModel, name: str) -> dict[str, nn.Parameter]:
        """The parameters of one part of `model`, those that are no module's (`image_newline`) included."""
        parameters: dict[str, nn.Parameter] = {}
        for path, operand in zip(self.parts[name], self._operands(model, name), strict=True):
            if isinstance(operand, nn.Parameter):
                parameters[path] = operand
            else:
                parameters |= {f"{path}.{key}": parameter for key, parameter in operand.named_parameters()}
        return parameters

    def _operands(self, model: PreTrainedModel, name: str) -> list[nn.Module | nn.Parameter]:
        names = [path.rpartition(".") for path in self.parts[name]]
        return [getattr(model.get_submodule(parent), leaf) for parent, _, leaf in names]

    def doors(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules through which V(x) enters the projector; several in Qwen3-VL, where layers of V are projected separately."""
        modules = self.part(model, "projector")
        return [door for module in modules for door in (module if isinstance(module, nn.ModuleList) else [module])]

    def layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """The decoder layers of the language model, in order."""
        return list(self.part(model, "language")[0].get_submodule("layers").children())

    def attention(self, model: PreTrainedModel, layer: int) -> nn.Module:
        """The self attention of a decoder layer."""
        return self.layers(model)[layer].get_submodule("self_attn")

    # ---- V and P

    def see(self, model: PreTrainedModel, media: Media) -> Features:
        """V(x): the family's own encoding runs, and what arrives at the projector is kept; of several doors along the width."""
        doors = self.doors(model)
        entering: dict[nn.Module, Tensor] = {}

        def keep(door: nn.Module, inputs: tuple[Any, ...]) -> None:
            entering[door] = inputs[0]

        hooks = [door.register_forward_pre_hook(keep) for door in doors]
        try:
            self.encode(model, media)
        finally:
            for hook in hooks:
                hook.remove()
        return entering[doors[0]] if len(doors) == 1 else torch.cat([entering[door] for door in doors], dim=-1)

    def encode(self, model: PreTrainedModel, media: Media) -> None:
        """Run V and P once on all that is shown, images first, by the model's own code."""
        given: dict[str, Any] = {name: media[name] for name in self.image_inputs if name in media}
        model.model.get_image_features(**given, return_dict=True)

    def project(self, model: PreTrainedModel, features: Features, media: Media) -> dict[Kind, Projected]:
        """P(V(x)), in the form that the family's forward takes as `mm_encoder_outputs`."""
        doors = self.doors(model)
        weights = list(doors[0].parameters())  # 4-bit ones are integers
        dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), model.dtype)
        entering = features.to(weights[0].device, dtype).chunk(len(doors), dim=-1)
        projected = [self.enter(door, part.contiguous(), media) for door, part in zip(doors, entering, strict=True)]
        return self.pack(model, projected, media)

    def enter(self, door: nn.Module, features: Features, media: Media) -> Tensor:
        """What one door of the projector makes of its share of the features."""
        return cast(Tensor, door(features))

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> dict[Kind, Projected]:
        """What the family does between the projector and the language model; here nothing but the form."""
        (only,) = projected
        return {"image": Projected(pooler_output=only if self.one_tensor else cast(Any, [only.flatten(0, -2)]))}

    @property
    def softcap(self) -> float | None:
        """c, where the logits are c·tanh(z / c); None where they are the head's own."""
        return None

    # ---- what belongs to which sample

    def tokens_of(self, projected: Projected) -> Float[Tensor, "tokens width"]:
        """P(V(x)) of one kind, in the order of its placeholders."""
        output: Any = projected.pooler_output
        parts = [output] if isinstance(output, Tensor) else output
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    def pictures_of_samples(self, media: Media, projected: Projected, tokens: list[int]) -> list[int]:
        """How many pictures V sees of each sample, from the number of its visual tokens: a picture has as many as its area says."""
        return share([height * width for height, width in self.grid_shapes(media)], tokens)

    def features_of_samples(self, features: Features, media: Media, pictures: list[int]) -> list[Tensor]:
        """V(x) of each sample, from the number of its pictures."""
        if not self.one_sequence:
            return [part.flatten(0, 1) for part in features.split(pictures)]
        areas = iter([height * width for height, width in self.grid_shapes(media)])
        return list(features.split([sum(next(areas) for _ in range(count)) for count in pictures]))

    # ---- V(x) as pictures

    def to_grids(self, features: Features, media: Media) -> list[FeatureGrid]:
        """`features` as one grid for each image (or tile, or pair of frames), rows from the top, columns from the left.

        Raises:
            ValueError: if there are more or fewer features than patches.
        """
        shapes, places, patches = self.grid_shapes(media), self.places(media), features.flatten(0, -2)
        areas = [height * width for height, width in shapes]
        if len(patches) != sum(areas):
            raise ValueError(
                f"{len(patches)} visual features are no grids of {sum(areas)} patches: a class token has no place in one"
            )
        parts = (patches if places is None else patches[places.argsort()]).split(areas)
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def from_grids(self, grids: list[FeatureGrid], media: Media) -> Features:
        """The inverse of `to_grids`: the features of a model that reads `media`.

        Raises:
            ValueError: if the grids are not as large as the images, with both sizes.
        """
        given, shapes, places = [tuple(grid.shape[:2]) for grid in grids], self.grid_shapes(media), self.places(media)
        if given != shapes:
            raise ValueError(f"the grids are {given} patches large, the images in the batch {shapes}")
        patches = torch.cat([grid.flatten(0, 1) for grid in grids])
        features = patches if places is None else patches[places]
        return features if self.one_sequence else features.unflatten(0, (len(grids), -1))

    def places(self, media: Media) -> Int[Tensor, " patches"] | None:
        """Which patch, counted row by row over all images, each of the features is; None where they are in this order."""
        return None

    def grid_shapes(self, media: Media) -> list[tuple[int, int]]:
        """Height and width of each of the grids that `to_grids` makes of `media`, without running the model."""
        side = self.sizes()["grid_side"]
        return [(side, side)] * self.picture_count(media)

    def picture_count(self, media: Media) -> int:
        """How many pictures the vision encoder sees in `media`."""
        return len(media["pixel_values"])

    def blank(self) -> Media:
        """The smallest image that V can see, of ones: what reaches the features can be found out with it."""
        side = one(self.config.vision_config.image_size)
        return {"pixel_values": torch.ones(1, 3, side, side)}

    def photograph(self) -> Media:
        """An image of 640 × 480 pixels (`PHOTOGRAPH`) in the sizes and tiles that published processors make of it, of ones."""
        return self.blank()

    def coarse(self, media: Media, detail: float) -> Media:
        """The same, each picture shrunk to `detail` of its sides and enlarged again."""
        return {name: coarse(one, detail) if name.startswith("pixel_values") else one for name, one in media.items()}

    # ---- sizes, from the config alone

    @cached_property
    def geometry(self) -> Geometry:
        """What student and teacher of one family must share; of these only the feature width matters to the switch alone."""
        return Geometry(
            vocabulary_rows=self.config.text_config.vocab_size, image_token_id=self.image_token_id, **self.sizes()
        )

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Those of vision encoder and projector, by the names of `Geometry`'s fields; here for images or tiles that are one square each."""
        vision = self.config.vision_config
        return {
            "feature_width": vision.hidden_size,
            "grid_side": one(vision.image_size) // one(vision.patch_size),
            "image_size": one(vision.image_size),
        }

    @property
    def image_token_id(self) -> int:
        """What stands for each visual token in a text."""
        return int(self.config.image_token_id)

    @property
    def visual_token_ids(self) -> dict[Kind, int]:
        """The same of each kind that has placeholders of its own."""
        ids: dict[Kind, int] = {"image": self.image_token_id}
        return ids | {"video": int(self.config.video_token_id)} if self.video_inputs else ids

    def is_visual(self, tokens: Int[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
        """Where a token stands for something that is seen."""
        image, *others = self.visual_token_ids.values()
        return reduce(lambda found, other: found | (tokens == other), others, tokens == image)

    def feature_count(self, media: Media) -> int:
        """The length of the first axis of V(x)."""
        if self.one_sequence:
            return sum(height * width for height, width in self.grid_shapes(media))
        return self.picture_count(media)

    @property
    def positions(self) -> int:
        """How many tokens the language model was made for, visual ones included."""
        return int(self.config.text_config.max_position_embeddings)

    @property
    def model_sizes(self) -> Sizes:
        """Of the language model, and of what it sees."""
        text = self.config.text_config
        return Sizes(width=text.hidden_size, heads=text.num_attention_heads, features=self.geometry.feature_width)


def share(sizes: list[int], parts: list[int]) -> list[int]:
    """How many of the `sizes`, from the first on, fill each of the `parts`, which are in another unit.

    Raises:
        ValueError: where a part ends within one of them.
    """
    ends = [0, *accumulate(sizes)]
    whole = sum(parts)
    places = [0]
    for end in accumulate(parts):
        wanted, rest = divmod(end * ends[-1], max(whole, 1))
        if rest or wanted not in ends:
            raise ValueError(f"samples of {parts} visual tokens do not end where images of the sizes {sizes} do")
        places.append(ends.index(wanted))
    return [after - before for before, after in pairwise(places)]


def one(size: Any) -> int:
    """A config's size of a square, which may be written as a number or as a pair."""
    return int(size if isinstance(size, int) else size[0])
