"""The models that live in a world of photographs: vision encoders, language halves, a teacher, and students that fit it or do not."""

from typing import TYPE_CHECKING

from switchkd.lazy import on_use

if TYPE_CHECKING:
    from switchkd.pretraining.photo_models import make_models

__all__ = ["make_models"]

__getattr__ = on_use(__name__, {"photo_models": ("make_models",)})
