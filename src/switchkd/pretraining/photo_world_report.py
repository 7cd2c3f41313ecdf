"""Make a world of photographs whole, and check what it is worth: disjoint photographs, the score without looking, the teacher's."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from switchkd.console import say
from switchkd.evaluate import evaluate_model
from switchkd.files import write_together
from switchkd.pretraining.photo_models import make_models
from switchkd.pretraining.scales import SCALES
from switchkd.world import once
from switchkd.world.photo_world import ScaleName, blind_score, check_disjoint, hold_splits, read_rows, write_photos
from switchkd.world.photographs import load_photographs

#: A blind score above this says that questions give their answers away; a teacher less than so many points above it sees too little.
HIGHEST_BLIND, LEAST_ABOVE_BLIND = 50.0, 15.0


@dataclass(frozen=True)
class WorldReport:
    """What a world of photographs holds and is worth; scores in percent, means over kinds of questions."""

    source: str
    scale: ScaleName
    seed: int
    classes: tuple[str, ...]
    #: Of each split.
    photographs: Mapping[str, int]
    #: Files that were left out, because another has the same bytes.
    repeated: int
    #: Different photographs in the pictures of each split; none is in two.
    shown: Mapping[str, int]
    blind: float
    blind_kinds: Mapping[str, float]
    teacher: float
    teacher_kinds: Mapping[str, float]

    def lines(self) -> Iterator[str]:
        """The report for people."""
        names = ", ".join(self.classes[:12]) + (", …" if len(self.classes) > 12 else "")
        yield f"photographs: {_counts(self.photographs)}, in {len(self.classes)} classes ({names})" + (
            f"; {self.repeated:,} repeated ones left out" if self.repeated else ""
        )
        yield f"shown in pictures: {_counts(self.shown)}; 0 in two splits"
        yield f"{'kind':14} {'blind':>6} {'teacher':>8}"
        for kind, blind in self.blind_kinds.items():
            yield f"{kind:14} {blind:6.1f} {self.teacher_kinds[kind]:8.1f}"
        yield f"{'mean of kinds':14} {self.blind:6.1f} {self.teacher:8.1f}"

    def problems(self) -> Iterator[str]:
        """What should be changed, and how."""
        if self.blind > HIGHEST_BLIND:
            yield (
                f"{self.blind:.1f} % of the answers are right without looking, more than {HIGHEST_BLIND:.0f} %: with {len(self.classes)} "
                "classes little is asked of the eyes. Add classes"
            )
        if self.teacher < self.blind + LEAST_ABOVE_BLIND:
            yield (
                f"the teacher has {self.teacher:.1f} % right, and without looking {self.blind:.1f} % are: it teaches little, less than "
                f"{LEAST_ABOVE_BLIND:.0f} points. Add photographs, take fewer classes or some that are easier to tell apart, or --scale gpu"
            )


def _counts(of_split: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} for {split}" for split, count in of_split.items())


def make_world(
    source: str, output: Path, *, train: int, validation: int, test: int, seed: int, scale: ScaleName
) -> WorldReport:
    """Write `output/data`, the models and `output/world.json`; what is there already is not made again.

    Raises:
        DataError: the photographs cannot be used, one is in two splits, or they have changed since the world was begun.
        ValueError: `output` holds another world.
    """
    photographs = load_photographs(source)
    asked = {"source": source, "scale": scale, "seed": seed, "train": train, "validation": validation, "test": test}
    _claim(output, asked)
    hold_splits(output, photographs)
    draw = partial(
        write_photos,
        photographs=photographs,
        train=train,
        validation=validation,
        test=test,
        seed=seed,
        image_size=SCALES[scale].image_size,
    )
    once(output / "data", draw)
    shown = check_disjoint(output / "data")
    blind = blind_score(read_rows(output / "data" / "train.json"), read_rows(output / "data" / "test.json"))
    say(f"without looking {blind.score:.1f} % of the answers are right; making the models")
    make_models(photographs, output, SCALES[scale], seed=seed)
    results = evaluate_model(
        output / "teacher", output / "data" / "test.json", output=output / "teacher.results.json", max_new_tokens=32
    )
    report = WorldReport(
        source,
        scale,
        seed,
        photographs.classes,
        {split: len(photographs.of(split)) for split in photographs.by_split},
        photographs.repeated,
        {str(split): count for split, count in shown.items()},
        blind.score,
        blind.kinds,
        results.score,
        {kind: score.accuracy_percent for kind, score in results.kinds.items()},
    )
    write_together({output / "world.json": json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"})
    return report


def _claim(output: Path, asked: Mapping[str, object]) -> None:
    """Raise ValueError where the folder holds something else."""
    marker = output / "asked.json"
    if output.is_dir() and any(output.iterdir()):
        written = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
        if written != asked:
            found = "no world" if written is None else f"a world of {_pairs(written)}"
            raise ValueError(
                f"{output} holds {found}, not one of {_pairs(asked)}: choose another --output or remove it"
            )
    write_together({marker: json.dumps(asked, indent=2) + "\n"})


def _pairs(asked: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in asked.items())
