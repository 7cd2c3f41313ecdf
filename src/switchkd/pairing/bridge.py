"""The bridge: from the student's visual features to what the teacher's projector receives, where their shapes differ."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from switchkd.models.families import FeatureGrid


class Bridge(nn.Module):
    """B in z_SW = L_T(P_T(B(V_S(x))), t): every grid is resampled to the teacher's (bilinear) and translated to its width (linear).

    It lives while the student is trained and learns with it; the student never contains it. It begins as the identity where the widths
    are equal, else with orthonormal rows or columns that keep the mean square of a channel. `fit` makes of that the best linear
    translation of V_S into V_T on some images, so that the switch starts where P_T can read.

    Args:
        student_width: channels of V_S.
        teacher_width: channels that P_T receives.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.translate = nn.Linear(student_width, teacher_width)
        #: Whether it knows anything yet, from `fit` or from a checkpoint.
        self.fitted = False
        with torch.no_grad():
            if student_width == teacher_width:
                nn.init.eye_(self.translate.weight)
            else:
                nn.init.orthogonal_(self.translate.weight, gain=math.sqrt(max(teacher_width / student_width, 1)))
            self.translate.bias.zero_()

    def forward(self, grids: list[FeatureGrid], sizes: list[tuple[int, int]]) -> list[FeatureGrid]:
        """The grids of as many images, each in the size (height, width) that the teacher's own encoder gives it."""
        return [
            self.translate(resample(grid.to(self.translate.weight.dtype), size))
            for grid, size in zip(grids, sizes, strict=True)
        ]

    @torch.no_grad()
    def fit(self, examples: Iterable[tuple[list[FeatureGrid], list[FeatureGrid]]]) -> float:
        """Least squares: translate the student's grids into the teacher's of the same images.

        Args:
            examples: (V_S(x), V_T(x)) for some batches of images.

        Returns:
            The share of the variance of V_T that the translation explains, 1 for all of it.

        Raises:
            ValueError: without any image.
        """
        width, dtype = self.translate.in_features, torch.float64
        gram = torch.zeros(width + 1, width + 1, dtype=dtype)
        cross = torch.zeros(width + 1, self.translate.out_features, dtype=dtype)
        square, total, count = torch.zeros((), dtype=dtype), cross.new_zeros(cross.shape[1]), 0
        for student_grids, teacher_grids in examples:
            for grid, target in zip(student_grids, teacher_grids, strict=True):
                x = resample(grid, (target.shape[0], target.shape[1])).flatten(0, 1).to("cpu", dtype)
                x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
                y = target.flatten(0, 1).to("cpu", dtype)
                gram += x.T @ x
                cross += x.T @ y
                square, total, count = square + y.square().sum(), total + y.sum(dim=0), count + len(y)
        if not count:
            raise ValueError("there is no image to fit the bridge to: the first rows of the data have none")
        # a ridge that matters only where features are linearly dependent
        gram += 1e-6 * gram.diagonal().mean() * torch.eye(width + 1, dtype=dtype)
        solution = torch.linalg.solve(gram, cross)
        self.translate.weight.copy_(solution[:-1].T)
        self.translate.bias.copy_(solution[-1])
        self.fitted = True
        residual = square - 2 * (solution * cross).sum() + (solution * (gram @ solution)).sum()
        variance = square - (total / count).square().sum() * count
        unexplained: float = (residual / variance).item()
        return 1 - unexplained


def resample(grid: FeatureGrid, size: tuple[int, int]) -> FeatureGrid:
    """The grid at another size: bilinear, and averaging where it shrinks."""
    if grid.shape[:2] == size:
        return grid
    planes = grid.permute(2, 0, 1).unsqueeze(0)
    half = planes.dtype in (torch.bfloat16, torch.float16)
    resized = F.interpolate(planes.float() if half else planes, size=size, mode="bilinear", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).to(grid.dtype)
