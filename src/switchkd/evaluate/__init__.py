"""Scoring a model on a data set: questions.py → generate.py → results/score.py, put together in evaluation.py.

`switchkd.evaluate` is this package and the function of the public interface: called, it is `evaluate_model`. A function of that name in
`switchkd/__init__.py` would be lost as soon as a module of this package is imported.
"""

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from switchkd.lazy import on_use

if TYPE_CHECKING:
    from switchkd.evaluate.evaluation import evaluate_model, load_questions
    from switchkd.results.question_results import Prediction, Results

    evaluate = evaluate_model

__all__ = ["Prediction", "Results", "evaluate", "evaluate_model", "load_questions"]

_find = on_use(__name__, {"evaluation": ("evaluate_model", "load_questions", "Prediction", "Results")})


def __getattr__(name: str) -> object:
    return sys.modules[__name__] if name == "evaluate" else _find(name)


class _Evaluate(ModuleType):
    """The package, which can be called."""

    def __call__(self, *given: Any, **named: Any) -> "Results":
        from switchkd.evaluate.evaluation import evaluate_model

        return evaluate_model(*given, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        from switchkd.evaluate.evaluation import evaluate_model

        return inspect.signature(evaluate_model)


sys.modules[__name__].__class__ = _Evaluate
