"""Figures 2 and 3: a run that is stopped anywhere ends with the bits of one that was not, and has read the same samples."""

import json
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from killed_runs import Reference, digests, losses, newest, undisturbed, write_recipe
from lives import End, Life, Nursery, live
from trajectories import same_versions

GOLDEN = Path(__file__).with_name("golden_losses.json")
TWO_STAGES = "stages: [{name: first, train: [projector], max_steps: 4}, {name: second, max_steps: 6}]\n"


@dataclass(frozen=True)
class Kind:
    """A recipe, and how many stops it gets in the whole figure."""

    name: str
    stops: int
    method: str = "sft"
    stages: str = ""
    rows: int = 12
    workers: int = 0
    accumulation: int = 1
    steps: int = 10

    def write(self, folder: Path) -> Path:
        return write_recipe(
            folder, method=self.method, rows=self.rows, stages=self.stages, max_steps=self.steps, save_steps=2,
            gradient_accumulation_steps=self.accumulation, dataloader_num_workers=self.workers,
        )  # fmt: skip


#: Twelve rows, two at a time: an epoch ends after every sixth micro-batch.
KINDS = [
    Kind("plain", 9),
    Kind("switch_kd, accumulating", 10, method="switch_kd", accumulation=4),
    Kind("two data workers", 9, workers=2),
    Kind("two data workers, accumulating, a last batch of one row", 6, workers=2, accumulation=3, rows=11),
    Kind("two stages", 6, stages=TWO_STAGES),
    Kind("two stages of align_kd", 5, method="align_kd", stages=TWO_STAGES),
]
RANK_STOPS = 5


def samples(life: Life, before: dict[str, int] | None = None) -> list[tuple[str, int, tuple[str, ...]]]:
    """(stage, step, samples) of every micro-batch; of steps after `before` only, where that is given the other way round."""
    return [words for words in life.of("batch") if before is None or words[1] <= before.get(words[0], 0)]


def place_of(number: int, reference: Life, kind: Kind) -> set[str]:
    """What is special about stopping before this micro-batch."""
    batches = reference.of("batch")
    stage, step, _ = batches[number - 1]
    within = number - 1 - next(i for i, words in enumerate(batches) if words[0] == stage)
    per_epoch = -(-kind.rows // 2)
    # a step does not reach over the end of an epoch
    place = {"epoch edge"} if within and within % per_epoch == 0 else {"mid-epoch"}
    if number > 1 and batches[number - 2][:2] == (stage, step):
        place.add("mid-accumulation")
    if number > 1 and batches[number - 2][0] != stage:
        place = {"border of stages"}
    return place


def chosen_stops(kind: Kind, reference: Life, count: int, draw: random.Random) -> list[int]:
    """Every special place first, then others."""
    numbers = list(range(2, len(reference.of("batch")) + 1))
    draw.shuffle(numbers)
    by_place: dict[str, list[int]] = {}
    for number in numbers:
        for place in place_of(number, reference, kind):
            by_place.setdefault(place, []).append(number)
    special = [number for place, held in by_place.items() if place != "mid-epoch" for number in held[:2]]
    return list(dict.fromkeys([*special, *numbers]))[:count]


def stopped_and_resumed(run_once, output: Path, number: int, reference: Reference) -> None:
    """Kill before a micro-batch, go on, and compare everything."""
    first = run_once(output, End(batch=number))
    assert first.killed
    kept = {folder.name: newest(folder) for folder in sorted(output.glob("*-*")) if folder.is_dir()}
    second = run_once(output, None)
    assert second.exit_code == 0, second.error
    assert samples(first, kept) + samples(second) == samples(reference.life), f"samples differ after a stop at {number}"
    assert losses(output) == losses(reference.run)
    assert digests(output / "student") == reference.student
    for (stage, step), held in reference.checkpoints.items():
        if (output / stage / f"checkpoint-{step}").exists():
            assert digests(output / stage / f"checkpoint-{step}") == held, f"{stage}/checkpoint-{step}"
    shutil.rmtree(output)


#: What was hit, over all kinds; the last test asserts it.
HIT: Counter[str] = Counter()


#: The one that has every special place but a border of stages; the short forms of the others take as long again.
IN_EVERY_TEST = "switch_kd, accumulating"


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", [pytest.param(k, id=k.name, marks=[] if k.name == IN_EVERY_TEST else pytest.mark.slow) for k in KINDS]
)
def test_a_stopped_run_equals_one_that_was_not(tmp_path, figure, whole, kind):
    draw = random.Random(kind.name)
    places: Counter[str] = Counter()
    with Nursery(kind.write(tmp_path)) as nursery:
        reference = undisturbed(nursery, tmp_path / "undisturbed")

        def run_once(output: Path, end: End | None) -> Life:
            return nursery.live(("--train.output", str(output), "--train.save-total-limit", "none"), end=end)

        stops = chosen_stops(kind, reference.life, kind.stops if whole else 1, draw)
        for number in stops:
            stopped_and_resumed(run_once, tmp_path / f"stopped-{number}", number, reference)
            places.update(place_of(number, reference.life, kind))
    assert len(stops) == (kind.stops if whole else 1)
    if whole:
        assert kind.accumulation == 1 or places["mid-accumulation"] >= 2, places
        assert not kind.stages or places["border of stages"] >= 1, places
        assert kind.stages or places["epoch edge"] >= 1, places
    said = ", ".join(f"{count} {place}" for place, count in sorted(places.items()))
    same = "samples, losses, weights and optimizer bit-identical"
    figure(f"2. resume, {kind.name}", f"{len(stops)} stops: {said}", f"{len(stops)} of {len(stops)}: {same}")


@pytest.mark.slow  # its short form too
def test_two_ranks_that_are_stopped_equal_two_that_were_not(tmp_path, figure, whole):
    recipe = write_recipe(tmp_path, max_steps=6, save_steps=2)

    def run_once(output: Path, end: End | None) -> Life:
        flags = ("--train.output", str(output), "--train.save-total-limit", "none")
        lives = live(recipe, flags, end=end, ranks=2)
        for life in lives:
            assert life.killed if end else life.exit_code == 0, [(life.exit_code, life.error) for life in lives]
        read = [tuple(words[2] for words in life.of("batch")) for life in lives]
        both = [
            ("batch", stage, step, (mine, yours))
            for (stage, step, mine), yours in zip(lives[0].of("batch"), read[1], strict=False)
        ]
        return Life(lives[0].killed, lives[0].exit_code, [w for w in lives[0].said if w[0] != "batch"] + both)

    complete = run_once(tmp_path / "undisturbed", None)
    assert len({name for _, _, pair in complete.of("batch")[:3] for names in pair for name in names}) == 12
    run = tmp_path / "undisturbed"
    kept = {(stage, step): digests(run / stage / f"checkpoint-{step}") for stage, step in complete.acknowledged}
    reference = Reference(run, complete, kept, digests(run / "student"))
    stops = [4, 3, 5, 6, 2][: RANK_STOPS if whole else 1]
    for number in stops:
        stopped_and_resumed(run_once, tmp_path / f"stopped-{number}", number, reference)
    same = "samples, losses, weights and optimizer bit-identical"
    figure("2. resume, two ranks", f"{len(stops)} stops of both", f"{len(stops)} of {len(stops)}: {same}")


def test_there_are_fifty_stops():
    assert sum(kind.stops for kind in KINDS) + RANK_STOPS == 50


@pytest.mark.slow  # its short form too
@same_versions
def test_three_runs_are_one(tmp_path, figure, whole):
    steps = 20 if whole else 5
    recipe = write_recipe(tmp_path, method="switch_kd", max_steps=20, save_steps=20)
    with Nursery(recipe) as nursery:
        runs = []
        for number in range(3):
            output = tmp_path / f"run-{number}"
            life = nursery.live(("--train.output", str(output)), end=None if whole else End(batch=steps + 1))
            assert life.killed is not whole, life.error
            runs.append((losses(output), samples(life), digests(output / "student") if whole else {}))
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0][0]) == steps
    golden = json.loads(GOLDEN.read_text())
    for number, (now, then) in enumerate(zip(runs[0][0], golden, strict=False), start=1):
        assert now["loss"] == pytest.approx(then, rel=1e-4), f"step {number}"
    figure(
        "3. determinism",
        f"3 runs of {steps} steps of switch_kd",
        f"0 differing bits; {steps} losses are the recorded ones to 1e-4",
    )
