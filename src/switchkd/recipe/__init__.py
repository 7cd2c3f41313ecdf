"""A recipe: everything that a run depends on, and how it is read from YAML and the command line."""

from switchkd.recipe.shipped_files import shipped

__all__ = ["shipped"]
