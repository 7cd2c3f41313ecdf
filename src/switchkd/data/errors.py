"""The ways in which data can be unusable: a whole source, one sample of it, or a chat template that takes too much."""

from collections.abc import Sequence

#: Training and evaluation go on without bad samples up to this share of them, unless told otherwise.
MAX_BAD_FRACTION = 0.01


class DataError(ValueError):
    """A data source, a processor or a whole run's data cannot be used. The message names the file and what to do."""


class SampleError(DataError):
    """One sample cannot be used. `index.build_index` lists such samples by id and goes on without them."""


class TemplateLimitError(DataError):
    """A chat template took more time or memory than any conversation needs: nothing is tried in its place."""


class MissingDecoderError(DataError):
    """Videos cannot be decoded here, whatever the row says: a package is missing."""


class UnequalVideosError(DataError):
    """Videos of rows cannot be asked about in one batch, because a model takes as many frames of each; one after the other they can."""


#: What is the fault of no row: it ends what goes through rows.
NO_FAULT_OF_THE_ROW = (TemplateLimitError, MissingDecoderError)


def check_bad_share(bad: Sequence[str], rows: int, allowed: float, *, at_least: int = 0, listed: str = "") -> None:
    """Raise DataError where too many rows cannot be used.

    Args:
        bad: why, of each of them.
        rows: how many have been encoded.
        allowed: the share that is put up with.
        at_least: the number of rows that the share is taken of while fewer have been encoded.
        listed: where all of them are listed; empty where they are not.
    """
    if len(bad) <= allowed * max(rows, at_least) and len(bad) < max(rows, at_least):
        return
    where = f", all listed in {listed}" if listed else ""
    raise DataError(
        f"{len(bad)} of {rows} samples ({len(bad) / rows:.1%}) are unusable, more than the allowed {allowed:.1%}{where}. First: "
        f"{'; '.join(bad[:3])}. Repair the data or raise the allowed fraction."
    )
