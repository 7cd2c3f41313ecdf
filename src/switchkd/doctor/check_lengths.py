"""How long the rows are, against what is cut off and what the models can place."""

from collections.abc import Iterator

import numpy as np

from switchkd.batch import sample_id
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import Examined

#: More rows than this share are cut for a reason that somebody should look at.
_FEW = 0.01


def lengths(examined: Examined) -> Iterator[Finding]:
    """The longest row and the one that 99 of 100 do not exceed; a warning where many are cut, or positions end before the rows do."""
    context, rows = examined.context, examined.context.rows
    limit, whole = context.run.reader.max_length, np.asarray(rows["tokens"])
    longest = int(whole.max())
    chosen = (
        "as many as the models have positions for" if context.run.recipe.data.max_length is None else "the recipe's"
    )
    detail = (
        f"the longest row, {sample_id(rows[int(whole.argmax())]['key'])!a}, has {longest:,} tokens, 99 of 100 have at most "
        f"{int(np.quantile(whole, 0.99, method='inverted_cdf')):,}; max_length is {limit:,} ({chosen})"
    )
    cut = int(np.sum(whole > np.asarray(rows["length"])))
    level: Level = "warning" if cut > _FEW * len(whole) else "ok"
    if cut:
        detail += f", and the answers of {cut:,} of {len(whole):,} rows are cut: with data.max_length {longest} none is"
    if context.packs is not None:
        detail += f"; {context.packs}"
    yield Finding(level, "row lengths", detail)
    read = max(rows["length"])
    teachers = [
        (f"teacher {tag}" if context.step.is_tagged else "teacher", pair.teacher)
        for tag, pair in context.step.pairs.items()
    ]
    for name, pathway in (("student", context.pair.student), *teachers):
        if pathway is not None and read > pathway.family.positions:
            yield Finding(
                "warning",
                f"{name}'s positions",
                f"a row has {read:,} tokens, and the {name}'s language model was made for {pathway.family.positions:,} positions: set "
                f"data.max_length to {pathway.family.positions}",
            )
