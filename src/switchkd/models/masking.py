"""A teacher without its smallest weights, which come back step by step (Masters, arXiv 2512.22238)."""

import logging
import math

import torch
from torch import Tensor, nn

from switchkd.models.pathway import Pathway

#: How many shares there are along a stage, the first one and 0 included: of 0.2 these are 0.2, 0.15, 0.1, 0.05 and 0.
STEPS = 5
_log = logging.getLogger(__name__)


def masked_share(most: float, progress: float) -> float:
    """r_i = r − s·⌊i·M / I⌋, at least 0, with M = 5 shares and s = r / (M − 1): the share that is masked in step i of I.

    Args:
        most: r, the share of the first steps.
        progress: i / I, above 0 and at most 1.
    """
    done = math.floor(round(progress * STEPS, 9))
    return max(most * (1 - done / (STEPS - 1)), 0.0)


class MagnitudeMask:
    """Sets a share of the weights of each matrix to 0, those of the smallest magnitude: w is kept where |w| ≥ λ_r (eq. 1).

    The matrices are the linear layers of the language model. Each has a threshold of its own, because with one for all some layers lose too
    much; embeddings, head, norms, vision encoder and projector stay whole. Of equal magnitudes at the threshold all are kept.

    The originals are copied into the memory of the host once, in their own precision, when the first weight is masked.

    Args:
        teacher: whose weights are changed in place.
        most: the share of the first steps.

    Raises:
        ValueError: weights that are no plain matrices, such as quantised ones, or none at all.
    """

    def __init__(self, teacher: Pathway, most: float) -> None:
        self._most = most
        (language, *_) = teacher.part("language")
        self._matrices = [layer.weight for layer in language.modules() if isinstance(layer, nn.Linear)]
        if not self._matrices or not all(weight.is_floating_point() for weight in self._matrices):
            raise ValueError(
                "teacher.mask sets weights of the language model's linear layers to 0, and these are "
                f"{'none' if not self._matrices else 'quantised'}: take mask out, or choose another teacher"
            )
        self._originals: list[Tensor] | None = None
        self._share = 0.0
        self._told: set[float] = set()

    @property
    def bytes(self) -> int:
        """Of the originals."""
        return sum(weight.numel() * weight.element_size() for weight in self._matrices)

    def at(self, progress: float) -> None:
        """Mask what `masked_share` says."""
        self.set(masked_share(self._most, progress))

    @torch.no_grad()
    def set(self, share: float) -> None:
        """Mask this share of every matrix, and nothing else: what was masked before and is not now is as it was."""
        if share == self._share:
            return
        if self._originals is None:
            _log.info(
                "teacher.mask: a copy of the language model's %d matrices is kept in the memory of the host, %.2f GiB",
                len(self._matrices),
                self.bytes / 2**30,
            )
            self._originals = [weight.detach().to("cpu", copy=True) for weight in self._matrices]
        if (
            share not in self._told
        ):  # what is measured on held-out rows is measured with the whole teacher, again and again
            _log.info("teacher.mask: %.1f %% of the weights of each matrix are 0", 100 * share)
            self._told.add(share)
        for weight, original in zip(self._matrices, self._originals, strict=True):
            weight.copy_(original)
            masked = math.floor(round(share * weight.numel(), 6))
            if masked:
                magnitudes = weight.abs().flatten()
                threshold = magnitudes.kthvalue(masked + 1).values
                weight.masked_fill_(weight.abs() < threshold, 0)
        self._share = share
