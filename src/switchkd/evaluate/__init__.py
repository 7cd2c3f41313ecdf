"""Scoring a model on a data set: questions.py → generate.py → results/score.py, put together in evaluation.py."""

from typing import TYPE_CHECKING

from switchkd.lazy import on_use

if TYPE_CHECKING:
    from switchkd.evaluate.evaluation import evaluate_model, load_questions
    from switchkd.results.question_results import Prediction, Results

__all__ = ["Prediction", "Results", "evaluate_model", "load_questions"]

__getattr__ = on_use(__name__, {"evaluation": ("evaluate_model", "load_questions", "Prediction", "Results")})
