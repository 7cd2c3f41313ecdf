"""A study's file: which arms, seeds and sizes of data; and the recipe of every cell."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from switchkd.files import write_together
from switchkd.recipe.packages import check_packages
from switchkd.recipe.parsing import RecipeError, lay_over, parse_flags, read_yaml, suggestion
from switchkd.recipe.schema import Recipe, build_recipe
from switchkd.results.stored import read_json, to_json
from switchkd.typed_fields import Builder, check_fields

#: In the folder of a seed's data: how they were drawn.
_DRAWN = "drawn.json"


@dataclass(frozen=True)
class World:
    """The study draws its data: for every seed other pictures, questions and answers of the procedural world, of so many pictures; or of a
    world of photographs."""

    train: int = 1500
    test: int = 60
    #: Labelled photographs to compose pictures of: a folder with a folder for each class, Parquet files or a data set of the hub.
    photos: str | None = None
    #: Where `switchkd world` has made the models that live with these photographs; what is missing is made there. By default `world` in
    #: the study's output.
    models: str | None = None
    #: How large those models are.
    scale: Literal["cpu", "gpu"] = "cpu"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.photos is None and (self.models is not None or self.scale != "cpu"):
            raise ValueError("models and scale are about a world of photographs: name them in photos")
        if self.photos == "":
            raise ValueError("photos is empty: name a folder or a data set")
        if self.train < 1 or self.test < 1:
            raise ValueError(
                f"a study needs pictures to train on and to ask about, got train {self.train} and test {self.test}"
            )


@dataclass(frozen=True)
class Study:
    """A grid: every arm is trained once for each seed and each size of data.

    All cells start from the same weights, and cells of one seed see the same rows in the same order for the same number of steps, except
    where an arm says otherwise. Relative paths are relative to the current directory.
    """

    #: What all arms share.
    recipe: str
    #: Where everything is left.
    output: str
    #: Name of an arm → the fields of the recipe in which it differs, section by section; and its own `baseline`, if it has one.
    arms: dict[str, dict[str, Any]]
    #: The arm that the others are compared with, seed by seed.
    baseline: str
    #: Of the order of the data, and of the world's pictures where the study draws them.
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    #: Sizes of the data: train on the first so many rows. Empty: on all of them.
    rows: tuple[int, ...] = ()
    world: World | None = None
    #: Cells at a time.
    jobs: int = 1
    #: Ids of the GPUs that the cells are spread over, each cell on one of them. Empty: every cell sees what the study sees.
    gpus: tuple[int, ...] = ()
    #: CPU threads of a cell. The sums of a run depend on it in their last digits, so it belongs to the study.
    threads: int = 1
    #: The output of another study, whose world and finished cells this one uses and adds to: the same arm under the same name is not run
    #: twice.
    shared_with: str | None = None
    #: Keep the weights of every trained student; otherwise they go when it has been evaluated.
    keep_students: bool = False
    #: What the file is called.
    name: str = field(default="study")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.arms:
            raise ValueError("arms is empty: name at least one, as in `arms: {SFT: {method: {name: sft}}}`")
        for arm, fields in self.arms.items():
            if not fields:
                raise ValueError(f"arm {arm} must name what differs, as in `{arm}: {{method: {{name: sft}}}}`")
        for name in self.baselines.values():
            if name not in self.arms:
                raise ValueError(
                    f"baseline {name!r} is no arm{suggestion(name, list(self.arms))} ({', '.join(self.arms)})"
                )
        slugs = [slug(arm) for arm in self.arms]
        if double := {s for s in slugs if slugs.count(s) > 1 or not s}:
            raise ValueError(f"arms need names that make different folders; these do not: {', '.join(sorted(double))}")
        for what, values in (("seeds", self.seeds), ("rows", self.rows), ("gpus", self.gpus)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} names a value twice: {', '.join(map(str, values))}")
        if not self.seeds:
            raise ValueError("seeds is empty: nothing would be trained")
        if any(size < 1 for size in self.rows):
            raise ValueError(f"rows must be at least 1, got {', '.join(map(str, self.rows))}")
        if any(gpu < 0 for gpu in self.gpus):
            raise ValueError(f"gpus are ids from 0, got {', '.join(map(str, self.gpus))}")
        if self.jobs < 1 or self.threads < 1:
            raise ValueError(f"jobs and threads must be at least 1, got {self.jobs} and {self.threads}")

    @property
    def store(self) -> Path:
        """Where cells, teachers' results and the world are."""
        return Path(self.shared_with or self.output)

    @property
    def baselines(self) -> dict[str, str]:
        """Arm → the arm it is compared with."""
        return {arm: str(fields.get("baseline", self.baseline)) for arm, fields in self.arms.items()}


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    arm: str
    seed: int
    #: Rows trained on; None is all.
    rows: int | None
    #: Its `train.output` is the cell's folder.
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.recipe.train.output)

    def file(self, ending: str) -> Path:
        """A file next to the folder, of the same name: `json` is the cell's record, `yaml` its recipe, `log` its output."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")

    def __str__(self) -> str:
        size = "" if self.rows is None else f", {self.rows} rows"
        return f"{self.arm}{size}, seed {self.seed}"


def load_study(path: str | Path) -> Study:
    """Read a study.

    Raises:
        RecipeError: anything that cannot be run, with the field, what was found, and a suggestion.
    """
    path = Path(path)
    study: Study = Builder(Study, {}, str(path), ()).build(Study, {"name": path.stem} | read_yaml(path))
    return study


def cells(study: Study, overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished study compares all arms on fewer seeds.

    `overrides` are `--section.field value` flags, laid over every arm.

    Raises:
        RecipeError: an arm whose recipe cannot be run, or that does not evaluate, or is asked from another file than the others; an arm
            or a flag with a field that the study sets.
    """
    _check_left_to_study(study, overrides)
    base = read_yaml(Path(study.recipe))
    sizes: Sequence[int | None] = study.rows or [None]
    planned = [
        _cell(study, base, arm, seed, size, overrides) for seed in study.seeds for size in sizes for arm in study.arms
    ]
    asked: dict[int, tuple[Cell, str]] = {}
    for cell in planned:
        assert cell.recipe.evaluate is not None
        other, data = asked.setdefault(cell.seed, (cell, cell.recipe.evaluate.data))
        if data != cell.recipe.evaluate.data:
            raise RecipeError(
                f"{study.name}: arm {cell.arm}: evaluate.data is {cell.recipe.evaluate.data}, of arm {other.arm} it is {data}: a study "
                "compares answers to the same questions, so leave it out, or make two studies of it"
            )
    return planned


def _check_left_to_study(study: Study, overrides: Sequence[str]) -> None:
    own = {"train.output": "output", "train.seed": "seeds"} | ({"data.rows": "rows"} if study.rows else {})
    named = [(name, f"--{name}") for name in parse_flags(overrides)]
    for arm, sections in study.arms.items():
        for section, fields in sections.items():
            names = [f"{section}.{name}" for name in fields] if isinstance(fields, dict) else [section]
            named += [(name, f"arm {arm}: {name}") for name in names]
    for name, place in named:
        if name in own:
            raise RecipeError(
                f"{study.name}: {place}: the study sets it, for every cell, from its `{own[name]}`: leave it out"
            )


def _cell(study: Study, base: dict[str, Any], arm: str, seed: int, rows: int | None, overrides: Sequence[str]) -> Cell:
    source = f"{study.name}: arm {arm}"
    tree = base
    if study.world:
        for name, file in world_paths(study, seed).items():
            tree = lay_over(tree, name, str(file))
    for section, fields in study.arms[arm].items():
        if section == "baseline":
            continue
        if (section == "method" and isinstance(fields, dict) and "name" in fields) or not isinstance(fields, dict):
            tree = lay_over(tree, section, fields)
        else:
            for name, value in fields.items():
                tree = lay_over(tree, f"{section}.{name}", value)
    folder = Path(study.store, "cells", slug(arm), "all" if rows is None else str(rows), str(seed))
    tree = lay_over(lay_over(tree, "train.seed", seed), "train.output", str(folder))
    tree = tree if rows is None else lay_over(tree, "data.rows", rows)
    recipe = build_recipe(tree, source, overrides)
    check_packages(recipe)
    if recipe.evaluate is None:
        raise RecipeError(f"{source}: a study compares accuracies: add `evaluate: {{data: …}}` to {study.recipe}")
    return Cell(arm, seed, rows, recipe)


def world_paths(study: Study, seed: int) -> dict[str, Path]:
    """The fields of a recipe that the study's own world fills."""
    folder = study.store / "world"
    assert study.world is not None
    photos = study.world.photos is not None
    models = Path(study.world.models) if study.world.models else folder
    return {
        "teacher.path": models / "teacher",
        "student.path": models / ("student" if photos else "student-init"),
        "data.train": folder / f"seed-{seed}" / "train.json",
        "evaluate.data": folder / f"seed-{seed}" / "test.json",
    }


def check_world(study: Study) -> None:
    """Note how the data of each seed were drawn where an earlier version did not, as far as they show it.

    Raises:
        ValueError: they were drawn otherwise than the study says.
    """
    assert study.world is not None
    wanted = _drawn(study.world)
    for seed in study.seeds:
        folder = world_paths(study, seed)["data.train"].parent
        if not folder.exists():
            continue
        noted = (folder / _DRAWN).exists()
        found = read_json(folder / _DRAWN, "the settings of a world") if noted else _seen(folder, study.world)
        if found != wanted:
            was, asked = (", ".join(f"{name} {value}" for name, value in one.items()) for one in (found, wanted))
            raise ValueError(
                f"{folder}: was drawn with {was}, and the study's world has {asked}: choose another output, or put `world` back"
            )
        if not noted:
            _note(folder, study.world)


def _drawn(world: World) -> dict[str, Any]:
    """What the data depend on."""
    return {"train": world.train, "test": world.test, "photos": world.photos, "scale": world.scale}


def _seen(folder: Path, world: World) -> dict[str, Any]:
    """The same of data without a note: the world's own settings as far as nothing speaks against them."""
    from switchkd.world.photographs import load_photographs

    rows = {split: read_json(folder / f"{split}.json", "rows") for split in ("train", "test")}
    shown = {digest for row in rows["train"] for digest in row.get("photographs", ())}
    there = {digest for digest, _ in load_photographs(world.photos).of("train")} if world.photos and shown else set()
    photos = None if not shown else world.photos if shown <= there else "other photographs"
    return _drawn(world) | {split: len(of_split) for split, of_split in rows.items()} | {"photos": photos}


def _note(folder: Path, world: World) -> None:
    write_together({folder / _DRAWN: to_json(_drawn(world))})


def write_world(study: Study) -> None:
    """Draw the data of every seed, and copy the models of the procedural world, unless they are there.

    Raises:
        DataError: the photographs are not those that the world of the models was made of.
    """
    from switchkd import world

    assert study.world is not None
    write = partial(world.write)
    if study.world.photos is not None:
        from switchkd.world.photo_world import IMAGE_SIZES, hold_splits, write_photos
        from switchkd.world.photographs import load_photographs

        photographs = load_photographs(study.world.photos)
        models = world_paths(study, study.seeds[0])["teacher.path"].parent
        if (models / "data").is_dir():  # a world of `switchkd world`
            hold_splits(models, photographs)
        write = partial(write_photos, photographs=photographs, image_size=IMAGE_SIZES[study.world.scale])

    def draw(folder: Path, seed: int) -> None:
        assert study.world is not None
        write(folder, train=study.world.train, validation=0, test=study.world.test, seed=seed)
        _note(folder, study.world)

    for seed in study.seeds:
        world.once(world_paths(study, seed)["data.train"].parent, partial(draw, seed=seed))
    if study.world.photos is None:
        world.once(study.store / "world" / "teacher", world.write_teacher)
        world.once(study.store / "world" / "student-init", world.write_student)


def slug(name: str) -> str:
    """`name` as the name of a folder."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.")
