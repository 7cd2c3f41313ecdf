"""A head, the matrix from hidden states to logits: its products in float32, forward and backward, for some tokens at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor

from switchkd.losses import kernels
from switchkd.signals import Head

#: Rows of a half-precision head that are widened at a time, so that no second copy of the head arises.
_WIDENED_ROWS = 8192


class Sparse(NamedTuple):
    """A gradient of logits that is 0 but at `ids`; the values of an id that occurs twice add up."""

    ids: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]


def has_matrix_units(weight: Tensor) -> bool:
    """Whether products of bf16 with a float32 result exist where this weight is: on CUDA, from torch 2.8 on."""
    return weight.is_cuda and "dtype_out" in torch.ops.aten.mm.overloads()


def autocast_to_bf16(device: torch.device) -> bool:
    """Whether matrix products on this device are being rounded to bf16 on the user's wish."""
    return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16


def check_head(name: str, head: Head, hidden: Tensor) -> None:
    """Refuse a head that cannot be applied to these hidden states.

    Raises:
        ValueError: shapes that do not fit, two devices.
        TypeError: a sharded weight.
    """
    weight, bias, softcap = head
    if any(isinstance(x, DTensor) for x in (weight, bias, hidden)):
        raise TypeError(
            f"{name} is sharded (DTensor), and the loss needs it whole: leave the head to FSDP's root, which gathers it for the pair's "
            "forward, instead of wrapping it by itself"
        )
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name} {list(weight.shape)} does not fit hidden states {list(hidden.shape)}: need [rows, hidden] and [tokens, hidden]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name} has {len(weight)} rows but a bias of shape {list(bias.shape)}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"{name} has a soft cap of {softcap}, which must be positive")
    if hidden.device != weight.device:
        raise ValueError(f"{name} is on {weight.device}, the hidden states are on {hidden.device}")


class Projection:
    """The first `rows` rows of a head at work: logits in float32 or wider, and the products of their gradient.

    Logits rounded to bf16 tie, and ties lose the ranking of the top-k. So half-precision operands are widened, except for bf16 on a
    device with matrix units (`has_matrix_units`): these multiply bf16 exactly and add in float32, which gives the same logits. There the
    gradient of the logits is rounded to bf16 before its two products, as it is under autocast; the products again add in float32.

    Args:
        head: weight and bias.
        rows: how many rows take part; the others are padding.
        hidden: the dtype of the hidden states.
        autocast: round operands of another dtype to bf16 where there are such matrix units, see `autocast_to_bf16`.
    """

    def __init__(self, head: Head, rows: int, hidden: torch.dtype, *, autocast: bool) -> None:
        weight = head.weight.detach()[:rows]
        self.dtype = torch.promote_types(torch.promote_types(hidden, weight.dtype), torch.float32)
        self.matrix_units = has_matrix_units(weight) and (autocast or hidden == weight.dtype == torch.bfloat16)
        self.weight = weight.bfloat16() if self.matrix_units else weight
        self.bias = None if head.bias is None else head.bias.detach()[:rows].to(self.dtype)
        self.softcap = head.softcap

    @property
    def gradient_dtype(self) -> torch.dtype:
        """In which the gradient of the logits is multiplied."""
        return torch.bfloat16 if self.matrix_units else self.dtype

    def operand(self, hidden: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        """Hidden states in the dtype in which they are multiplied."""
        return hidden.to(self.gradient_dtype)

    def logits(self, hidden: Float[Tensor, "n hidden"], out: Float[Tensor, "n rows"]) -> Float[Tensor, "n rows"]:
        """z = h Wᵀ + b, soft-capped where the head is, written into `out`."""
        if self.matrix_units:
            torch.mm(hidden, self.weight.T, out_dtype=self.dtype, out=out)
        else:
            for rows, weight in self._blocks():
                torch.mm(hidden, weight.T, out=out[:, rows])
        if self.bias is not None:
            out.add_(self.bias)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def softcap_derivative(self, logits: Float[Tensor, "n rows"]) -> Float[Tensor, "n rows"] | None:
        """∂ logits/∂(h Wᵀ + b) of a soft-capped head, 1 − (z/c)²; None without a cap."""
        return None if self.softcap is None else (logits / self.softcap).square_().neg_().add_(1)

    def hidden_gradient(self, gradient: Float[Tensor, "n rows"] | Sparse) -> Float[Tensor, "n hidden"]:
        """∂L/∂h = ∂L/∂z W. Where ∂L/∂z is sparse, a weighted sum of the few rows of W that it names."""
        if isinstance(gradient, Sparse):
            return self._rows_of_weight(*gradient)
        if self.matrix_units:
            return torch.mm(gradient.bfloat16(), self.weight, out_dtype=self.dtype)
        result = gradient.new_zeros(len(gradient), self.weight.shape[1])
        for rows, weight in self._blocks():
            result.addmm_(gradient[:, rows], weight)
        return result

    def _rows_of_weight(self, ids: Int[Tensor, "n k"], values: Float[Tensor, "n k"]) -> Float[Tensor, "n hidden"]:
        table = self.weight
        if self.dtype == torch.float32 and kernels.why_not(table.device) is None:
            return kernels.weighted_rows(ids, values, table)
        if (
            self.matrix_units
        ):  # rounded to bf16 as before the dense product; looking for the ids in use would make the host wait
            values = values.to(table.dtype)
            return F.embedding_bag(ids, table, mode="sum", per_sample_weights=values).to(self.dtype)
        if table.dtype != self.dtype:
            used, ids = ids.unique(return_inverse=True)
            table = table[used].to(self.dtype)
        return F.embedding_bag(ids, table, mode="sum", per_sample_weights=values.to(self.dtype))

    def add_weight_gradient(
        self,
        gradient: Float[Tensor, "n rows"],
        hidden: Float[Tensor, "n hidden"],
        total: Float[Tensor, "rows hidden"],
        *,
        first: bool,
    ) -> None:
        """Add ∂L/∂W = (∂L/∂z)ᵀ h of these tokens to `total`, or overwrite it if they are the first."""
        beta = 0 if first else 1
        if self.matrix_units:
            torch.addmm(total, gradient.bfloat16().T, hidden, beta=beta, out_dtype=self.dtype, out=total)
        else:
            total.addmm_(gradient.T, hidden, beta=beta)

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "block hidden"]]]:
        """The weight in the dtype of the logits: whole where it has it already, else widened piece by piece."""
        step = len(self.weight) if self.weight.dtype == self.dtype else _WIDENED_ROWS
        for start in range(0, len(self.weight), step):
            yield slice(start, start + step), self.weight[start : start + step].to(self.dtype)
