"""Models: one vision-language model as a pathway through vision encoder, projector and language model."""

from switchkd.models.pathway import Pathway, load_pathway

__all__ = ["Pathway", "load_pathway"]
