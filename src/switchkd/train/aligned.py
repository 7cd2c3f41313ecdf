"""Of rows that student and teacher read apart, the share of answer tokens that can be compared."""

import logging

from datasets import Dataset

_log = logging.getLogger(__name__)


def check_aligned(rows: Dataset, least: float) -> None:
    """Log the share of answer tokens that can be compared, and raise ValueError where it is too small."""
    share = sum(rows["compared"]) / sum(rows["answers"])
    if share < least:
        raise ValueError(
            f"only {share:.1%} of the student's answer tokens are the same text and id for the teacher, and `pair.min_aligned` asks for "
            f"{least:.1%}: choose a teacher with a nearer tokenizer or chat template, or lower it"
        )
    _log.info(
        "%.1f %% of the student's answer tokens are compared with the teacher's (%s)",
        100 * share,
        shares_by_words(rows),
    )


def shares_by_words(rows: Dataset) -> str:
    """Of the answer tokens of these rows of an index, the share that is compared, by the length of the answer."""
    arrays = rows.with_format("numpy")
    answers, compared = (arrays[f"{what}_by_words"][:].sum(axis=0) for what in ("answers", "compared"))
    shares = [
        f"{100 * part / whole:.1f} % of {whole:,} in answers of {words}"
        for words, whole, part in zip(("1 word", "2 to 4 words", "5 or more words"), answers, compared, strict=True)
        if whole
    ]
    return ", ".join(shares)
