"""An activation of one's own: what a layer's attention asks at the visual tokens."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from switchkd.models import Pathway
from switchkd.models.capture import Capture, Site


@dataclass(frozen=True)
class Queries(Site):
    """The queries of one layer, all heads side by side: [tokens, channels]. `layer` counts from 0, or back from -1, the last."""

    layer: int = 0

    def hook(self, pathway: Pathway, note: Callable[[Any], None]) -> Iterable[RemovableHandle]:
        """Behind the matrix that makes them."""
        matrix = pathway.family.attention(pathway.model, self.layer).get_submodule("q_proj")
        return [matrix.register_forward_hook(lambda module, inputs, output: note(output))]

    def of_samples(self, capture: Capture) -> list[Tensor]:
        """In the order of the tokens; none of a sample without an image."""
        return list(capture.noted[self][capture.positions("visual")].split(capture.counts("visual")))
