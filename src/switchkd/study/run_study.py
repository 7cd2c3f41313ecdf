"""Train the cells of a study, several at a time, and write down what came out. What is finished is never run again."""

import fcntl
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from switchkd.data.errors import DataError
from switchkd.data.sources import find_sources
from switchkd.models.revision import at_revision
from switchkd.recipe.schema import build_recipe, recipe_to_dict, save_recipe
from switchkd.results.metrics import metric_words
from switchkd.results.question_results import Results
from switchkd.results.study_results import ArmSummary, CellRecord
from switchkd.study.jobs import End, Job, run_jobs
from switchkd.study.plan import Cell, Study, cells, check_world, slug, world_paths, write_world
from switchkd.study.summary import summarise

_log = logging.getLogger(__name__)


def run_study(study: Study, overrides: Sequence[str] = ()) -> tuple[ArmSummary, ...]:
    """Run what is not finished yet, and return the table. It is left in `<output>/table.md`, everything else in `<output>/study.json`.

    A cell is a `switchkd train` of its own, in its own process; where it was killed it goes on from its last checkpoint. A cell that fails
    does not stop the others.

    Raises:
        RecipeError: a cell that cannot be run, before any is.
        ValueError: if `output` is in use, or the questions of a cell are missing, or it holds cells of another recipe, data of another
            world or a teacher's answers to other questions.
        RuntimeError: at the end, if cells failed; with their logs.
    """
    output = Path(study.output)
    planned = cells(study, overrides)
    for folder in (output, study.store):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(study.store) as lock:
        for cell in planned:
            _check(cell)
        if study.world:
            check_world(study)
            _make_models(study, lock)
            write_world(study)
        open_cells = [cell for cell in planned if not cell.file("json").exists()]
        _check_questions(open_cells)
        teachers = _teachers(study, planned)
        _log.info("%d cells, %d of them to run", len(planned), len(open_cells))
        jobs = [_teacher_job(cell, file) for file, cell in teachers.items() if not file.exists()]
        jobs += [_job(cell) for cell in open_cells]
        failed = []
        for job, end in run_jobs(jobs, at_a_time=study.jobs, threads=study.threads, gpus=study.gpus, keep_open=(lock,)):
            if end.code != 0:
                failed.append(f"{job.name}: exit code {end.code}, {job.log}")
            elif job.cell is not None:
                _write_record(job.cell, end, keep=study.keep_students)
        table = summarise(study, [cell for cell in planned if cell.file("json").exists()], len(planned), teachers)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} jobs failed; the same command runs them again. " + "; ".join(failed)
        )
    return table


@contextmanager
def _alone(output: Path) -> Iterator[int]:
    """Hold the study's folder. The cells inherit the lock, so that an orphaned one keeps it until it has ended."""
    with open(output / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{output} is in use: a study runs there, or a cell of one that was killed has not ended yet"
            ) from None
        yield lock.fileno()


def _make_models(study: Study, lock: int) -> None:
    """Have `switchkd world` make the models of a world of photographs, unless they are there.

    Raises RuntimeError where it fails, with its log.
    """
    assert study.world is not None
    models = world_paths(study, study.seeds[0])["teacher.path"].parent
    if study.world.photos is None or all((models / name).is_dir() for name in ("teacher", "student", "student-other")):
        return
    command = ["world", study.world.photos, "--output", str(models), "--scale", study.world.scale]
    command += ["--train", str(study.world.train), "--test", str(study.world.test)]
    job = Job(f"models for {study.world.photos}", tuple(command), study.store / "world.log", resumed=models.exists())
    for _, end in run_jobs([job], at_a_time=1, threads=study.threads, gpus=study.gpus, keep_open=(lock,)):
        if end.code != 0:
            said = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"{job.name} could not be made: {said[-1] if said else end.code}; {job.log}")


def _check(cell: Cell) -> None:
    file = cell.file("json")
    if file.exists() and build_recipe(CellRecord.load(file).recipe, str(file)) != cell.recipe:
        raise ValueError(
            f"{file}: the cell {cell} was finished with another recipe: choose another output, or remove it and {cell.folder}"
        )


def _check_questions(cells: Sequence[Cell]) -> None:
    """Raise ValueError where a cell would ask in the end what is not there: it would be seen when it has been trained."""
    asked: dict[str, Cell] = {}
    for cell in cells:
        assert cell.recipe.evaluate is not None
        asked.setdefault(cell.recipe.evaluate.data, cell)
    for data, cell in asked.items():
        try:
            find_sources(data)
        except DataError as error:
            raise ValueError(f"evaluate.data of the cell {cell}: {error}") from error


def _job(cell: Cell) -> Job:
    recipe = cell.file("yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    save_recipe(cell.recipe, recipe)
    resumed = any(cell.folder.glob("*/*checkpoint-*"))
    return Job(str(cell), ("train", str(recipe)), cell.file("log"), resumed=resumed, cell=cell)


def _teachers(study: Study, planned: Sequence[Cell]) -> dict[Path, Cell]:
    """The results of every teacher on every test set, and a cell that has both."""
    first: dict[tuple[str, str | None, str], Cell] = {}
    for cell in planned:
        assert cell.recipe.evaluate is not None
        if (teacher := cell.recipe.last_teacher) is not None:
            first.setdefault((teacher.path, teacher.revision, cell.recipe.evaluate.data), cell)
    return {_teacher_file(study.store / "teachers", *key): cell for key, cell in first.items()}


def _teacher_file(folder: Path, path: str, revision: str | None, data: str) -> Path:
    """Names that make one slug have different digests; earlier versions wrote none, so what lies there may be another teacher's."""
    name = slug(f"{path} {data}").encode()
    if len(name) < 256 and revision is None:  # longer ones are no names of folders
        earlier = folder / name.decode() / "results.json"
        if earlier.exists() and Path(Results.load(earlier).model).is_relative_to(path):
            return earlier
    digest = sha256(f"{path}\n{revision}\n{data}".encode()).hexdigest()[:8]
    return folder / f"{name[-200:].decode(errors='ignore')}-{digest}" / "results.json"


def _teacher_job(cell: Cell, file: Path) -> Job:
    settings, teacher = cell.recipe.evaluate, cell.recipe.last_teacher
    assert settings is not None
    assert teacher is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["evaluate", at_revision(teacher.path, teacher.revision), settings.data, "--output", str(file)]
    command += ["--batch-size", str(settings.batch_size), "--max-new-tokens", str(settings.max_new_tokens)]
    command += ["--max-bad-fraction", str(settings.max_bad_fraction)]
    command += ["--image-root", settings.image_root] if settings.image_root else []
    command += (
        ["--columns", *(f"{ours}={theirs}" for ours, theirs in settings.columns.items())] if settings.columns else []
    )
    command += ["--metric", *metric_words(settings.metric)] if settings.metric else []
    return Job(f"teacher {teacher.path} on {settings.data}", tuple(command), file.with_name("log"), resumed=False)


def _write_record(cell: Cell, end: End, *, keep: bool) -> None:
    results = Results.load(cell.folder / "results.json")
    CellRecord(
        arm=cell.arm,
        seed=cell.seed,
        rows=cell.rows,
        **asdict(end),
        device=results.device,
        versions=results.versions,
        recipe=recipe_to_dict(cell.recipe),
    ).save(cell.file("json"))
    if not keep:  # the last checkpoint is the student once more
        for folder in [cell.folder / "student", *cell.folder.glob("*-*/*checkpoint-*")]:
            shutil.rmtree(folder)
