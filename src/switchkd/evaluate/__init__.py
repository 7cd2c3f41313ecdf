"""Scoring a model on a data set: questions.py → generate.py → results/score.py, put together in evaluation.py."""

from switchkd.evaluate.evaluation import evaluate_model, load_questions
from switchkd.results.question_results import Prediction, Results

__all__ = ["Prediction", "Results", "evaluate_model", "load_questions"]
