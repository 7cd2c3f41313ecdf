"""Places inside a model that a method can look at, captured while the model says its answers: no second forward pass.

A new place is one class: what it hooks, and what of that belongs to each sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from switchkd.names import Kind, Place, Route, VisualWeights

if TYPE_CHECKING:  # recipes name places through their methods, and import no torch
    from jaxtyping import Bool, Float
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from switchkd.batch import Inputs
    from switchkd.models.families import Features
    from switchkd.models.pathway import Pathway

#: Tokens of a sample: its visual tokens; its text, as far as the next token is text too (no padding, not the end of a sample); the
#: positions that predict its answers; what is neither seen nor answered, which is what is asked; all that is no padding.
Where = Literal["visual", "text", "answers", "prompt", "all"]


@dataclass
class Capture:
    """What one `Pathway.say` made on its way, by the place that hooked it."""

    pathway: Pathway
    inputs: Inputs
    #: V(x) that was said.
    features: Features | None
    noted: dict[Site, Any] = field(default_factory=dict)

    def positions(self, where: Where) -> Bool[Tensor, "batch sequence"]:
        """These tokens of every sample."""
        import torch

        tokens = self.inputs.tokens
        visual = self.pathway.family.is_visual(tokens)
        if where == "visual":
            return visual
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        if where == "answers":
            mask.flatten()[self.inputs.predicts] = True
            return mask
        samples = self.inputs.samples()
        if where == "all":
            return samples >= 0
        text = (samples >= 0) & ~visual
        if where == "prompt":
            mask.flatten()[self.inputs.predicts + 1] = True
            return text & ~mask
        mask[:, :-1] = text[:, :-1] & text[:, 1:] & (samples[:, :-1] == samples[:, 1:])
        return mask

    def counts(self, where: Where) -> list[int]:
        """How many of these tokens each sample has."""
        return self._of_samples(self.positions(where))

    def visual_counts(self) -> dict[Kind, list[int]]:
        """How many visual tokens of each kind each sample has."""
        ids = self.pathway.family.visual_token_ids
        return {kind: self._of_samples(self.inputs.tokens == ids[kind]) for kind in self.inputs.media}

    def split(
        self, states: Float[Tensor, "batch sequence width"], positions: Bool[Tensor, "batch sequence"]
    ) -> list[Float[Tensor, "tokens width"]]:
        """What each sample has at these tokens."""
        return list(states.flatten(0, 1)[positions.flatten()].split(self._of_samples(positions)))

    def _of_samples(self, positions: Bool[Tensor, "batch sequence"]) -> list[int]:
        samples = self.inputs.samples()[positions]
        return list(samples.bincount(minlength=len(self.inputs.lengths)).tolist())


@dataclass(frozen=True)
class Site(Place, ABC):
    """A place inside a model. Equal sites are one place: methods name them in `needs`."""

    #: Whether attention weights must be kept, which eager attention alone does.
    eager_attention: ClassVar[bool] = False
    #: Whether the pair's bridge carries the student's to the teacher's shape, where the two differ.
    bridged: ClassVar[bool] = False
    #: Whether it is captured in the teacher alone.
    teacher_alone: ClassVar[bool] = False

    @property
    def alike(self) -> frozenset[str]:
        """What the two models must agree in, to be compared there: fields of `Geometry`, "tokenizer" and "chat template"."""
        return VISUAL

    @abstractmethod
    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Hook the model so that it notes what passes here."""

    @abstractmethod
    def of_samples(self, capture: Capture) -> list[Float[Tensor, "..."]]:  # noqa: UP037
        """What was noted, one tensor for each sample."""


#: Sizes on which the number of visual tokens depends.
VISUAL = frozenset(("tokens_per_image", "tokens_per_tile", "merge_size", "patch_size", "frames_per_patch"))
_TEXT = frozenset(("tokenizer", "chat template"))
#: What must agree for these tokens to be compared one by one.
_ALIKE: dict[Where, frozenset[str]] = {
    "visual": VISUAL,
    **dict.fromkeys(("text", "answers", "prompt"), _TEXT),
    "all": VISUAL | _TEXT,
}


#: What messages call the visual switch, however far it runs.
SWITCH = "the switch"


def learned_by_vision_alone(needs: Iterable[Route | Site | VisualWeights]) -> str:
    """What of a method's needs trains the student's vision encoder and nothing else, for a message; empty where nothing does."""
    needs = list(needs)
    if any(need == "switch" or isinstance(need, Switched) for need in needs):
        return SWITCH
    return "the term on V(x)" if any(isinstance(need, Site) and need.bridged for need in needs) else ""


def _on_entering(pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
    """Note P(V(x)) as it enters the language model."""

    def entering(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        note(keywords["mm_encoder_outputs"])

    return [pathway.model.model.register_forward_pre_hook(entering, with_kwargs=True)]


@dataclass(frozen=True)
class Vision(Site):
    """V(x): [tokens, width] as the projector receives them; over the pair's bridge, the student's are B(V_S(x)), laid out as V_T(x) is."""

    bridged: ClassVar[bool] = True

    @property
    def alike(self) -> frozenset[str]:
        """They are compared place by place and channel by channel."""
        return frozenset(
            ("feature_width", "grid_side", "window_size", "deepstack_layers", "patch_size", "frames_per_patch")
        )

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """The projected tokens tell how many pictures each sample has."""
        return _on_entering(pathway, note)

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "tokens width"]]:
        """None of a sample without an image."""
        import torch

        family, projected, media = capture.pathway.family, capture.noted[self], capture.inputs.media
        if capture.features is None or projected is None or not media:  # or a blank one, which belongs to no sample
            empty = capture.pathway.head.weight.new_zeros(0, family.geometry.feature_width)
            return [empty for _ in capture.counts("visual")]
        tokens, parts = capture.visual_counts(), {}
        lengths = [family.feature_count(one) for one in media.values()]
        for (kind, one), features in zip(media.items(), capture.features.split(lengths), strict=True):
            pictures = family.pictures_of_samples(one, projected[kind], tokens[kind])
            parts[kind] = family.features_of_samples(features, one, pictures)
        # images, and behind them videos
        return [torch.cat(one) if len(one) > 1 else one[0] for one in zip(*parts.values(), strict=True)]


@dataclass(frozen=True)
class Projected(Site):
    """P(V(x)): [tokens, width] as they enter the language model."""

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Where they enter."""
        return _on_entering(pathway, note)

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "tokens width"]]:
        """None of a sample without an image."""
        return _projected(capture.noted[self], capture)


@dataclass(frozen=True)
class Hidden(Site):
    """Hidden states of the language model: [tokens, width].

    `layer` is a depth from 0 to 1: 1 is behind the last layer and its norm, less is the output of a layer on the way, 0 the first one's.
    """

    layer: float = 1.0
    at: Where = "visual"

    def __post_init__(self) -> None:
        _check_depth(self, self.layer)

    @property
    def alike(self) -> frozenset[str]:
        """The tokens are compared one by one."""
        return _ALIKE[self.at]

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Behind the layer, or behind the whole."""
        if self.layer == 1:
            whole = pathway.model.model
            return [whole.register_forward_hook(lambda module, inputs, output: note(output.last_hidden_state))]
        return [_on_leaving(_at_depth(pathway.family.layers(pathway.model), self.layer), note)]

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "tokens width"]]:
        """In the order of the tokens."""
        return capture.split(capture.noted[self], capture.positions(self.at))


@dataclass(frozen=True)
class HiddenSet(Hidden):
    """`Hidden`, where the method itself says which tokens of the two models belong together: the two may have another number of them."""

    @property
    def alike(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()


@dataclass(frozen=True)
class Switched(Site):
    """Behind the first `layers` layers of the teacher's language model: [tokens, width], at visual tokens and at what predicts answers.

    The student's is what the teacher makes there of B(V_S(x)), the teacher's what it makes of V_T(x). With no layers it is P_T(·), the
    visual tokens as they enter the language model; of features that enter at later layers (deepstack) it has none.
    """

    bridged: ClassVar[bool] = True
    layers: int

    @property
    def alike(self) -> frozenset[str]:
        """Nothing: it is one model that reads one text, both times."""
        return frozenset()

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Behind the last of these layers, or where the visual tokens enter."""
        if not self.layers:
            return _on_entering(pathway, note)
        return [_on_leaving(pathway.family.layers(pathway.model)[self.layers - 1], note)]

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "tokens width"]]:
        """In the order of the tokens."""
        if not self.layers:
            return _projected(capture.noted[self], capture)
        positions = capture.positions("visual") | capture.positions("answers")
        return capture.split(capture.noted[self], positions)


@dataclass(frozen=True)
class Attention(Site):
    """Attention weights of one layer of the language model, from some tokens to others: [heads, of, to]. `layer` is a depth from 0 to 1."""

    axes: ClassVar[tuple[str, str]] = ("queries", "keys")
    eager_attention: ClassVar[bool] = True
    layer: float = 0.0
    of: Where = "text"
    to: Where = "visual"

    def __post_init__(self) -> None:
        _check_depth(self, self.layer)

    @property
    def alike(self) -> frozenset[str]:
        """Both the queries and the keys are compared one by one."""
        return _ALIKE[self.of] | _ALIKE[self.to]

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Behind the layer's attention."""
        return [_on_attending(pathway, round(self.layer * (len(pathway.family.layers(pathway.model)) - 1)), note)]

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "heads of to"]]:
        """In the order of the tokens."""
        return _between(capture.noted[self], capture, self.of, self.to)


@dataclass(frozen=True)
class TeacherAttention(Attention):
    """`Attention` of the teacher alone: it is compared with nothing, and says what matters."""

    teacher_alone: ClassVar[bool] = True

    @property
    def alike(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()


@dataclass(frozen=True)
class MiddleAttention(Site):
    """Attention weights of the middle third of a language model's layers, a mean over heads: [layers, of, to]. ⌈L / 3⌉ of L layers."""

    axes: ClassVar[tuple[str, str]] = ("queries", "keys")
    eager_attention: ClassVar[bool] = True
    of: Where = "all"
    to: Where = "visual"

    @property
    def alike(self) -> frozenset[str]:
        """Both the queries and the keys are compared one by one. The number of layers may differ."""
        return _ALIKE[self.of] | _ALIKE[self.to]

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Behind the attention of these layers, which run in their order."""
        layers = len(pathway.family.layers(pathway.model))
        kept: list[Tensor] = []
        note(kept)
        count = math.ceil(layers / 3)
        begin = (layers - count) // 2
        middle = range(begin, begin + count)
        return [_on_attending(pathway, layer, lambda weights: kept.append(weights.mean(dim=1))) for layer in middle]

    def of_samples(self, capture: Capture) -> list[Float[Tensor, "layers of to"]]:
        """In the order of the tokens."""
        import torch

        return _between(torch.stack(capture.noted[self], dim=1), capture, self.of, self.to)


def _on_attending(pathway: Pathway, layer: int, note: Callable[[Any], None]) -> RemovableHandle:
    """Note the attention weights of a layer: [batch, heads, queries, keys]."""

    def attended(module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]) -> None:
        if outputs[1] is None:
            raise ValueError(
                f"layer {layer} of the {pathway.family.model_type} language model keeps no attention weights: only eager attention "
                "does. Use attn_implementation auto or eager"
            )
        note(outputs[1])

    return pathway.family.attention(pathway.model, layer).register_forward_hook(attended)


def _between(
    weights: Float[Tensor, "batch maps sequence sequence"], capture: Capture, of: Where, to: Where
) -> list[Float[Tensor, "maps of to"]]:
    """What each sample's own tokens have of it."""
    samples, queries, keys = capture.inputs.samples(), capture.positions(of), capture.positions(to)
    return [
        weights[row][:, queries[row] & (samples[row] == number)][:, :, keys[row] & (samples[row] == number)]
        for number, row in enumerate(capture.inputs.rows().tolist())
    ]


def _on_leaving(layer: nn.Module, note: Callable[[Any], None]) -> RemovableHandle:
    """Note what a decoder layer makes."""
    return layer.register_forward_hook(
        lambda module, inputs, output: note(output[0] if isinstance(output, tuple) else output)
    )


def _projected(entering: Any, capture: Capture) -> list[Float[Tensor, "tokens width"]]:
    """P(V(x)) of each sample, in the order of its tokens; none of one without an image."""
    import torch

    if not entering:
        width = capture.pathway.sizes.width
        return [capture.pathway.head.weight.new_zeros(0, width) for _ in capture.counts("visual")]
    family, placeholders = capture.pathway.family, capture.inputs.tokens[capture.positions("visual")]
    of_kinds = torch.cat([family.tokens_of(one) for one in entering.values()])
    places = torch.cat([(placeholders == family.visual_token_ids[kind]).nonzero()[:, 0] for kind in entering])
    return list(of_kinds[places.argsort()].split(capture.counts("visual")))


def _check_depth(site: Site, layer: float) -> None:
    if not 0 <= layer <= 1:
        raise ValueError(f"{site}: layer is a depth, from 0 for the first to 1 for the last")


def _at_depth(layers: list[nn.Module], depth: float) -> nn.Module:
    return layers[max(math.ceil(round(depth * len(layers), 6)), 1) - 1]  # 0.28 * 25 is a little more than 7


@contextmanager
def capture(pathway: Pathway, features: Features | None, inputs: Inputs, sites: frozenset[Site]) -> Iterator[Capture]:
    """Note what one `Pathway.say` makes at some places, around that call; without any, nothing is hooked and nothing kept."""
    captured = Capture(pathway, inputs, features)
    handles = [handle for site in sites for handle in site.hook(pathway, partial(captured.noted.__setitem__, site))]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def of_samples(captured: Capture, sites: frozenset[Site]) -> dict[Site, list[Float[Tensor, "..."]]]:  # noqa: UP037
    """What was captured, one tensor for each sample."""
    return {site: site.of_samples(captured) for site in sites}
