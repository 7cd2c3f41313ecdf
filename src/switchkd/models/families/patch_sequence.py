"""Families whose images keep their size: features are one long sequence of the patches of all images."""

from abc import abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.batch import Media
from switchkd.models.families.family import Family, FeatureGrid, Features


class PatchSequence(Family):
    """Features are [patches of all images, width]; `grid_shapes` says how many belong to each image."""

    @abstractmethod
    def grid_shapes(self, media: Media) -> list[tuple[int, int]]:
        """Height and width of each image in patches, as the image processor says."""

    def places(self, media: Media) -> Int[Tensor, " patches"] | None:
        """Which patch, counted row by row over all images, stands at each place of the features; None where they are in this order."""
        return None

    def to_grids(self, features: Features, media: Media) -> list[FeatureGrid]:
        """One grid for each image."""
        shapes, places = self.grid_shapes(media), self.places(media)
        in_order = features if places is None else features[places.argsort()]
        parts = in_order.split([height * width for height, width in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def from_grids(self, grids: list[FeatureGrid], media: Media) -> Features:
        """Image after image, in the order of the family's features."""
        given, shapes, places = [tuple(grid.shape[:2]) for grid in grids], self.grid_shapes(media), self.places(media)
        if given != shapes:
            raise ValueError(f"the grids are {given} patches large, the images in the batch {shapes}")
        in_order = torch.cat([grid.flatten(0, 1) for grid in grids])
        return in_order if places is None else in_order[places]

    def features_of_samples(
        self, features: Features, media: Media, pictures: list[int]
    ) -> list[Float[Tensor, "tokens width"]]:
        """V(x) of each sample: as many patches as its pictures have."""
        areas = iter([height * width for height, width in self.grid_shapes(media)])
        return list(features.split([sum(next(areas) for _ in range(count)) for count in pictures]))
