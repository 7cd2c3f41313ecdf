"""What evaluations found, as typed values that are saved and loaded here and nowhere else."""

from switchkd.results.question_results import Prediction, Results

__all__ = ["Prediction", "Results"]
