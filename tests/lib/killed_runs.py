"""Runs that are killed again and again, beside the undisturbed run that they must equal."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lives import End, Life, Nursery, Trouble
from run_files import write_data, write_model

from switchkd.train import checkpoint

#: The stage of these recipes.
STAGE = "1-train"


def write_recipe(folder: Path, *, method: str = "sft", rows: int = 12, stages: str = "", **train: object) -> Path:
    """A recipe of tiny models that saves at every step, with all that it needs; nothing is evaluated at its end."""
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "train.json", rows)
    settings = {"output": str(folder / "run"), "max_steps": 12, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
                "logging_steps": 1, "save_steps": 1, "report_to": [], **train}  # fmt: skip
    recipe = folder / "recipe.yaml"
    teacher = "" if method == "sft" else f"teacher: {{path: {folder}/teacher}}\n"
    recipe.write_text(
        f"{teacher}student: {{path: {folder}/student}}\nmethod: {{name: {method}}}\n"
        f"data: {{train: {folder}/data/train.json, max_length: 256}}\ntrain: {json.dumps(settings)}\n{stages}"
    )
    return recipe


def digest(file: Path) -> str:
    """Of its bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Of what is learned, in a checkpoint or a finished student."""
    names = ("model.safetensors", "learned.safetensors", "optimizer.pt", "scheduler.pt")
    return {name: digest(folder / name) for name in names if (folder / name).exists()}


def losses(run: Path) -> list[dict[str, float]]:
    """What was logged of every step of all stages, but not how fast."""
    lines = [line for file in sorted(run.glob("*/metrics.jsonl")) for line in file.read_text().splitlines()]
    times = ("_runtime", "_per_second", "epoch")
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith(times)}
        for line in lines
        if "loss" in json.loads(line)
    ]


@dataclass
class Reference:
    """An undisturbed run that has kept all its checkpoints."""

    run: Path
    life: Life
    checkpoints: dict[tuple[str, int], dict[str, str]]
    student: dict[str, str]

    @property
    def operations(self) -> int:
        """File operations of one save."""
        return int(self.life.of("operations")[0][0])


def undisturbed(nursery: Nursery, output: Path, fields: tuple[str, ...] = ()) -> Reference:
    """Train to the end."""
    flags = ("--train.output", str(output), "--train.save-total-limit", "none", *fields)
    life = nursery.live(flags, end=End(operation=10**9))
    assert life.exit_code == 0, life.error
    kept = {(str(stage), step): digests(output / stage / f"checkpoint-{step}") for stage, step in life.acknowledged}
    assert kept
    assert all(kept.values())
    return Reference(output, life, kept, digests(output / "student"))


@dataclass
class KilledRun:
    """A run, from its first life to its finished student. Every wrong is an AssertionError that says what was lost."""

    nursery: Nursery
    output: Path
    reference: Reference
    fields: tuple[str, ...] = ()
    acknowledged: dict[str, int] = field(default_factory=dict)
    finished: bool = False
    #: Whether lines of the log may be missing: they are not flushed one by one.
    log_may_miss_lines: bool = False

    def live(self, end: End | None = None, trouble: Trouble | None = None) -> Life:
        """One life, and a look at what it left; it must have gone on from the newest checkpoint by itself."""
        before = {
            folder.name: newest(folder) for folder in self.output.glob("*-*")
        }  # some were saved and not yet said so
        life = self.nursery.live(("--train.output", str(self.output), *self.fields), end=end, trouble=trouble)
        for stage, step in life.of("resumed"):
            assert step == before.get(stage, 0), (
                f"{stage} went on from step {step}, and checkpoint-{before.get(stage)} was there"
            )
        for stage, step in life.acknowledged:
            self.acknowledged[stage] = step
        if trouble is None:
            assert life.error is None, f"{self.output} could not go on by itself: {life.error}"
        self.check()
        if life.exit_code == 0:
            assert digests(self.output / "student") == self.reference.student, (
                f"{self.output}/student is another student"
            )
            logged, complete = losses(self.output), losses(self.reference.run)
            assert logged == complete or (self.log_may_miss_lines and all(line in complete for line in logged))
            self.finished = True
        return life

    def check(self) -> None:
        """No acknowledged checkpoint is lost, and what is there is what an undisturbed run has."""
        for stage, step in self.acknowledged.items():
            found = checkpoint.latest(self.output / stage)
            assert found is not None, f"checkpoint-{step} of {self.output / stage} was acknowledged, and none is there"
            now = int(found.name.partition("-")[2])
            assert now >= step, (
                f"checkpoint-{step} of {self.output / stage} was acknowledged, and {found.name} is the newest"
            )
            assert digests(found) == self.reference.checkpoints[stage, now], (
                f"{found} is not that of an undisturbed run"
            )

    def remove(self) -> None:
        """Make room."""
        shutil.rmtree(self.output)


def newest(stage: Path) -> int:
    """The step of the newest sound checkpoint; 0 if there is none."""
    found = checkpoint.latest(stage)
    return 0 if found is None else int(found.name.partition("-")[2])
