"""What a feature loss keeps of the teacher: how much each channel of V(x) matters."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeatureWeights(nn.Module):
    """Weights of the channels of V_T(x), with a mean of 1. Measured before the first step, they stay as they are; checkpoints keep them.

    Args:
        width: channels of V_T(x).
        rows: of the data, that they are to be measured on.
    """

    weights: Tensor

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        #: Whether they are known, from `measured_as` or from a checkpoint.
        self.measured = False
        self.register_buffer("weights", torch.zeros(width))
        self.register_load_state_dict_post_hook(_loaded)

    def measured_as(self, importance: Float[Tensor, " width"]) -> None:
        """Take what was measured, divided by its mean.

        Raises:
            ValueError: where no channel matters, or a value is not finite.
        """
        mean = importance.mean()
        if not 0 < mean < torch.inf:
            raise ValueError(
                f"the channels of the teacher's features matter {mean.item()} in the mean to its answers about these rows, so they have no "
                "weights: look at the teacher and at the first rows of the data, or set fisher_rows to 0"
            )
        self.weights.copy_(importance / mean)
        self.measured = True

    def known(self) -> Float[Tensor, " width"]:
        """The weights.

        Raises:
            ValueError: where they have not been measured.
        """
        if not self.measured:
            raise ValueError(
                "the weights of the features are not known yet: measure them by `pair.feature_importance` before the first step"
            )
        return self.weights


def _loaded(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, FeatureWeights)
    module.measured = bool(module.weights.any())
