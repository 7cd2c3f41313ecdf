"""Results as typed values that are saved and loaded here and nowhere else."""

from switchkd.results.benchmark_results import BenchmarkResults
from switchkd.results.question_results import Prediction, Results
from switchkd.results.study_results import StudyResults

__all__ = ["BenchmarkResults", "Prediction", "Results", "StudyResults"]
