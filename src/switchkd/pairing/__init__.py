"""Two models that differ: what of them fits, what is bridged, which ids and answers are compared, and the visual switch."""

from switchkd.pairing.pair import Pair, check_compatible

__all__ = ["Pair", "check_compatible"]
