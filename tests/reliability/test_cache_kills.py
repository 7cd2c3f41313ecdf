"""A teacher's cache that is being filled and killed, again and again: no entry is damaged, and it ends as one that never was."""

import random

import pytest
from caches import contents, damaged, fill, recipe_of, write_pair
from lives import in_a_fork

from switchkd.recipe.schema import save_recipe


@pytest.mark.slow
def test_killed_at_any_moment_a_cache_has_no_damaged_entry_and_ends_as_the_same_bytes(tmp_path, figure):
    write_pair(tmp_path)
    for name in ("undisturbed", "killed"):
        save_recipe(recipe_of(tmp_path, cache=name), tmp_path / f"{name}.yaml")
    cache = tmp_path / "killed"
    (_, written, operations, seconds), end = in_a_fork(fill, str(tmp_path / "undisturbed.yaml"), None, None)
    assert (written, end) == (6, ("exit", 0))
    draw, kills, lives, mid_write = random.Random(3), 0, 0, 0
    while kills < 20:
        by_operation = draw.random() < 0.6
        at = draw.randint(1, operations) if by_operation else None
        said = in_a_fork(
            fill, str(tmp_path / "killed.yaml"), at, None if by_operation else draw.uniform(0, 1.2 * seconds)
        )
        lives += 1
        killed = said[-1] != ("exit", 0)
        assert said[-1][1] in (0, -9), said
        kills += killed
        assert damaged(cache) == []
        mid_write += killed and any((cache / "shards").glob(".*"))
        if not killed or draw.random() < 0.3:  # begun anew, or nothing would be left to be killed at
            if not killed:
                assert contents(cache) == contents(tmp_path / "undisturbed")
            (cache / "index.arrow").unlink(missing_ok=True)
            for file in (cache / "shards").glob("*"):
                if draw.random() < 0.7:
                    file.unlink(missing_ok=True)
    assert in_a_fork(fill, str(tmp_path / "killed.yaml"), None, None)[-1] == ("exit", 0)
    assert contents(cache) == contents(tmp_path / "undisturbed")
    assert damaged(cache) == []
    figure(
        "1. kills of a teacher's cache",
        f"{kills} SIGKILLs in {lives} lives, {mid_write} with a shard half-written",
        "0 damaged entries, the finished cache byte-identical to an undisturbed one",
    )
