"""Distillation losses: pure functions from logits [..., vocab] to one value per position [...], in nats. The trainer reduces.

`fused_loss` is the exception that saves the memory: from hidden states to sums, for any loss that is a `ChunkLoss`.
"""

from switchkd.losses.activation_losses import affinity, of_logits, relation, relative_error, squared_error
from switchkd.losses.attention_losses import attention_distance, attention_received
from switchkd.losses.chunks import AutogradTerms, ChunkLoss
from switchkd.losses.cross_entropy_dbild import CrossEntropyDBiLD
from switchkd.losses.dbild import DBiLDSettings, bild, dbild
from switchkd.losses.divergence import cross_entropy, forward_kl, jsd, reverse_kl, soft_cross_entropy
from switchkd.losses.fused import SummedLoss, added, fused_loss, plain_loss, with_samples
from switchkd.losses.knee import knee
from switchkd.losses.matching import match_tokens
from switchkd.signals import Head

__all__ = [
    "AutogradTerms",
    "ChunkLoss",
    "CrossEntropyDBiLD",
    "DBiLDSettings",
    "Head",
    "SummedLoss",
    "added",
    "affinity",
    "attention_distance",
    "attention_received",
    "bild",
    "cross_entropy",
    "dbild",
    "forward_kl",
    "fused_loss",
    "jsd",
    "knee",
    "match_tokens",
    "of_logits",
    "plain_loss",
    "relation",
    "relative_error",
    "reverse_kl",
    "soft_cross_entropy",
    "squared_error",
    "with_samples",
]
