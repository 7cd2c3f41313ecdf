"""What the project must know about a family of vision-language models, and no more."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from switchkd.types import Batch

#: V(x): what the vision encoder hands to the projector, one entry for each image.
Features = Float[Tensor, "images tokens width"]


class Family(ABC):
    """Where vision encoder V, projector P and language model L are in the models of one `model_type`."""

    model_type: ClassVar[str]
    #: The parts by their names in recipes → dotted names inside the whole model.
    parts: ClassVar[dict[str, tuple[str, ...]]]
    #: For `switchkd models`: what the family covers.
    summary: ClassVar[str]

    @abstractmethod
    def check(self, config: PretrainedConfig) -> None:
        """Raise ValueError where the family has members that this project has not been tested with."""

    @abstractmethod
    def see(self, model: PreTrainedModel, batch: Batch) -> Features:
        """V(x), at the layer and with the tokens that the projector receives."""

    @abstractmethod
    def project(self, model: PreTrainedModel, features: Features) -> Any:
        """P(V(x)), in the form that the family's forward takes as `mm_encoder_outputs["image"]`."""

    @abstractmethod
    def blind_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Parameters of the vision encoder that do not feed `see`, and so never receive a gradient."""

    @abstractmethod
    def geometry(self, config: PretrainedConfig) -> dict[str, int]:
        """From the config alone: `feature width`, `visual tokens per image`, `vocabulary rows`, `image token id`."""

    def softcap(self, config: PretrainedConfig) -> float | None:
        """c, where the family's logits are c·tanh(z / c) (Gemma 2 and its kin); None where they are the head's own."""
        return None

    def part(self, model: PreTrainedModel, name: str) -> list[nn.Module]:
        """The modules of one part of `model`."""
        return [model.get_submodule(path) for path in self.parts[name]]
