"""The ways in which data can be unusable: a whole source, one sample of it, or a chat template that takes too much."""

#: Training and evaluation go on without bad samples up to this share of them, unless told otherwise.
MAX_BAD_FRACTION = 0.01


class DataError(ValueError):
    """A data source, a processor or a whole run's data cannot be used. The message names the file and what to do."""


class SampleError(DataError):
    """One sample cannot be used. `index.build_index` lists such samples by id and goes on without them."""


class TemplateLimitError(DataError):
    """A chat template took more time or memory than any conversation needs: nothing is tried in its place."""
