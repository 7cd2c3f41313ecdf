"""Which visual tokens of two models belong together, where one model has more of them than the other."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses.checks import at_least_float32, check_logits


@torch.no_grad()
def match_tokens(
    student: Float[Tensor, "n vocab"], teacher: Float[Tensor, "m vocab"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """The min(n, m) pairs (i, σ(i)) that minimise Σ ‖z_S,i − z_T,σ(i)‖₁, one to one (EM-KD, arXiv 2511.21106).

    The distances are between logits, as the paper has them, not between probabilities; n · m · vocab subtractions. There is no gradient:
    the pairs are a choice, and what is learned from them is another loss.

    Returns:
        Places among the student's tokens, ascending, and those of their partners among the teacher's.

    Raises:
        ValueError: two vocabularies, or logits that are not finite.
        TypeError: logits that are not floating point.
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"tokens are matched by logits of the same ids, got {student.shape[1]} of the student and {teacher.shape[1]} of the teacher"
        )
    distances = torch.cdist(at_least_float32(student), at_least_float32(teacher), p=1)
    rows, columns = cheapest_pairs(distances.double().cpu().numpy())
    return torch.from_numpy(rows).to(student.device), torch.from_numpy(columns).to(student.device)


def cheapest_pairs(
    cost: Float[np.ndarray, "n m"],
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """The one-to-one pairs of rows and columns of the smallest total cost, as many as the smaller side has; rows ascend.

    The Hungarian method (Kuhn 1955) by shortest augmenting paths: rows are given a column one by one, and each time the path to a free
    column that costs least moves the rows on it, in O(min(n, m)² · max(n, m)). Prices of rows and columns keep every reduced cost
    cost_ij − row_i − column_j at least 0, so that a path is found as Dijkstra finds it. Of equal ways the first column counts. Costs
    must be finite.
    """
    if len(cost) > cost.shape[1]:
        columns, rows = cheapest_pairs(cost.T)
        order = rows.argsort()
        return rows[order], columns[order]
    n, m = cost.shape
    row_price, column_price = np.zeros(n), np.zeros(m)
    row_of = np.full(m, -1)  # the row that has this column; -1: it is free
    for begin in range(n):
        length = np.full(m, np.inf)  # of the shortest path from `begin` to each column
        before = np.full(m, -1)  # the column before it on that path; -1: none
        final = np.zeros(m, dtype=bool)
        row, column, least = begin, -1, 0.0
        while row >= 0:
            through = least + cost[row] - row_price[row] - column_price
            shorter = ~final & (through < length)
            length[shorter], before[shorter] = through[shorter], column
            column = int(np.where(final, np.inf, length).argmin())
            least, final[column] = length[column], True
            row = row_of[column]
        row_price[begin] += least
        moved = final & (row_of >= 0)
        row_price[row_of[moved]] += least - length[moved]
        column_price[final] -= least - length[final]
        while column >= 0:
            earlier = before[column]
            row_of[column] = begin if earlier < 0 else row_of[earlier]
            column = earlier
    taken = np.flatnonzero(row_of >= 0)
    order = row_of[taken].argsort()
    return row_of[taken][order], taken[order]
