"""Distillation losses: pure functions from logits to one value per position, in nats. The trainer reduces."""

from switchkd.losses.bild import bild, dbild
from switchkd.losses.divergence import cross_entropy, forward_kl, jsd, reverse_kl
from switchkd.losses.knee import knee

__all__ = ["bild", "cross_entropy", "dbild", "forward_kl", "jsd", "knee", "reverse_kl"]
