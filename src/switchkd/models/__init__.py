"""Models: pathways through vision encoder, projector and language model, and the pair that the switch joins."""

from switchkd.models.pair import Pair, check_fit
from switchkd.models.pathway import Pathway, load_pathway

__all__ = ["Pair", "Pathway", "check_fit", "load_pathway"]
