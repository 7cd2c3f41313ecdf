"""Models: one vision-language model as a pathway through vision encoder, projector and language model."""

from typing import TYPE_CHECKING

from switchkd.lazy import on_use

if TYPE_CHECKING:
    from switchkd.models.pathway import Pathway, load_pathway

__all__ = ["Pathway", "load_pathway"]

__getattr__ = on_use(__name__, {"pathway": ("Pathway", "load_pathway")})  # recipes ask this package for names alone
