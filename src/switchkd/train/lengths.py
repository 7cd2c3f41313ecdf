"""How many tokens a row may have."""

from transformers import PretrainedConfig

from switchkd.data.reader import LONGEST
from switchkd.models.families import family_of
from switchkd.recipe.schema import Data


def row_length(data: Data, *models: PretrainedConfig) -> int:
    """`data.max_length`; where a recipe names none, as many as every one of the models has positions for, and at most `LONGEST`."""
    return data.max_length or min(LONGEST, *(family_of(model).positions for model in models))
