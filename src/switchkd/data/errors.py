"""The two ways in which data can be unusable: a whole source, or one sample of it."""


class DataError(ValueError):
    """A data source, a processor or a whole run's data cannot be used. The message names the file and what to do."""


class SampleError(DataError):
    """One sample cannot be used. `index.build_index` lists such samples by id and goes on without them."""
