"""Visual-switch knowledge distillation for vision-language models.

The public interface is what `__all__` names. Each name is imported when it is first used, so that `import switchkd` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from switchkd.batch import TEACHER
    from switchkd.data.collate import Collator
    from switchkd.data.formats import load_rows
    from switchkd.data.reader import Reader
    from switchkd.distillation import Distilled, distill
    from switchkd.evaluate import evaluate, evaluate_model
    from switchkd.losses import bild, cross_entropy, dbild, forward_kl, fused_loss, jsd, knee, reverse_kl
    from switchkd.methods import (
        EMKD,
        KD,
        METHODS,
        SFT,
        AlignKD,
        AlignTI,
        BiLD,
        CompoDistill,
        FeatureKD,
        LLaVAKD,
        LLaVAMoD,
        Method,
        SwitchKD,
    )
    from switchkd.models import Pathway, load_pathway
    from switchkd.pairing import Pair
    from switchkd.pairing.reading import OwnInputs, SameInputs
    from switchkd.recipe.schema import Recipe, load_recipe
    from switchkd.signals import AnswerLogits, TokenTerm
    from switchkd.train.step import DistillationStep
    from switchkd.versions import __version__

__all__ = [
    "EMKD",
    "KD",
    "METHODS",
    "SFT",
    "TEACHER",
    "AlignKD",
    "AlignTI",
    "AnswerLogits",
    "BiLD",
    "Collator",
    "CompoDistill",
    "DistillationStep",
    "Distilled",
    "FeatureKD",
    "LLaVAKD",
    "LLaVAMoD",
    "Method",
    "OwnInputs",
    "Pair",
    "Pathway",
    "Reader",
    "Recipe",
    "SameInputs",
    "SwitchKD",
    "TokenTerm",
    "__version__",
    "bild",
    "cross_entropy",
    "dbild",
    "distill",
    "evaluate",
    "evaluate_model",
    "forward_kl",
    "fused_loss",
    "jsd",
    "knee",
    "load_pathway",
    "load_recipe",
    "load_rows",
    "reverse_kl",
]

#: Where each public name is defined; the imports above say the same to type checkers (tests/test_public.py compares the three).
_MODULES = {
    "batch": ("TEACHER",),
    "data.collate": ("Collator",),
    "data.formats": ("load_rows",),
    "data.reader": ("Reader",),
    "distillation": ("Distilled", "distill"),
    "evaluate": ("evaluate", "evaluate_model"),
    "losses": ("bild", "cross_entropy", "dbild", "forward_kl", "fused_loss", "jsd", "knee", "reverse_kl"),
    "methods": (
        "EMKD",
        "KD",
        "METHODS",
        "SFT",
        "AlignKD",
        "AlignTI",
        "BiLD",
        "CompoDistill",
        "FeatureKD",
        "LLaVAKD",
        "LLaVAMoD",
        "Method",
        "SwitchKD",
    ),
    "models": ("Pathway", "load_pathway"),
    "pairing": ("Pair",),
    "pairing.reading": ("OwnInputs", "SameInputs"),
    "recipe.schema": ("Recipe", "load_recipe"),
    "signals": ("AnswerLogits", "TokenTerm"),
    "train.step": ("DistillationStep",),
    "versions": ("__version__",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(import_module(f"switchkd.{module}"), name)
            globals()[name] = value  # the next access does not come here
            return value
    raise AttributeError(f"module 'switchkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
