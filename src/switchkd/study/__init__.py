"""Studies: a grid of methods, seeds and sizes of data from one file, trained cell by cell, and the table of what came out."""

from switchkd.study.plan import Study, load_study

__all__ = ["Study", "load_study"]
