"""A recipe: everything a run depends on, one typed object, read from YAML and changed by `--section.field value`.

Fields that users know from Hugging Face have their names there. Relative paths are relative to the current directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from switchkd.data.errors import MAX_BAD_FRACTION
from switchkd.data.forms import check_columns
from switchkd.methods import METHODS, Method
from switchkd.methods.plugins import find_plugin
from switchkd.methods.plus import SAMPLE_TERMS
from switchkd.methods.weighted import WEIGHTS
from switchkd.models.capture import SWITCH, learned_by_vision_alone
from switchkd.names import TEACHER, VisualWeights
from switchkd.recipe.data_section import Data as Data
from switchkd.recipe.data_section import Named as Named
from switchkd.recipe.data_section import WeightedData as WeightedData
from switchkd.recipe.data_section import data_names as data_names
from switchkd.recipe.data_section import data_weights as data_weights
from switchkd.recipe.device_checks import check_devices_fit
from switchkd.recipe.field_checks import at_least, require, share
from switchkd.recipe.foreign_names import FOREIGN
from switchkd.recipe.model_sections import Attention as Attention
from switchkd.recipe.model_sections import LoRA as LoRA
from switchkd.recipe.model_sections import Student as Student
from switchkd.recipe.model_sections import Teacher as Teacher
from switchkd.recipe.model_sections import check_caches, check_tags, check_teacher
from switchkd.recipe.on_policy import OnPolicy as OnPolicy
from switchkd.recipe.parsing import lay_over, parse_flags, read_yaml
from switchkd.recipe.row_checks import check_rows_fit
from switchkd.recipe.saving import recipe_to_dict as recipe_to_dict
from switchkd.recipe.saving import save_recipe as save_recipe
from switchkd.recipe.training import LearningRates as LearningRates
from switchkd.recipe.training import Train as Train
from switchkd.recipe.training import check_held_out, check_steps
from switchkd.results.metrics import parse_metrics
from switchkd.typed_fields import Builder, check_fields

#: The parts of a student that a stage can train.
Part = Literal["vision", "projector", "language"]


@dataclass(frozen=True)
class Pairing:
    """What to do where student and teacher differ."""

    #: auto: the switch gets a bridge where the shapes of the visual features differ. always: also where they do not, for encoders that were
    #: trained separately. none: such pairs are refused.
    bridge: Literal["auto", "always", "none"] = "auto"
    #: A new bridge is fitted to the teacher's features on so many rows, by least squares. 0: it starts without knowledge.
    fit_rows: int = 512
    #: The run stops where a smaller share of the student's answer tokens can be compared with the teacher's.
    min_aligned: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.fit_rows >= 0, f"fit_rows must not be negative, got {self.fit_rows}")
        require(0 < self.min_aligned <= 1, f"min_aligned must be above 0 and at most 1, got {self.min_aligned}")


@dataclass(frozen=True)
class Stage:
    """One stage of training as it is written: the parts that learn, and what differs from the recipe. None means: as in the recipe.

    A stage that sets `num_train_epochs` and not `max_steps` counts epochs, even where the recipe's `train` counts steps.
    """

    #: Names its folder.
    name: str
    #: The parts that learn.
    train: tuple[Part, ...] = ("vision", "projector", "language")
    #: Its own method, or some knobs of the recipe's: `{align: 0.5}`.
    method: Method | None = None
    #: The model that this stage learns from, in place of the recipe's `teacher`, of which nothing is taken over.
    teacher: Teacher | None = None
    #: Its own data, as `data.train`.
    data: Named | None = None
    #: In place of `train.num_train_epochs`.
    num_train_epochs: float | None = None
    #: In place of `train.max_steps`.
    max_steps: int | None = None
    #: In place of `train.learning_rate`.
    learning_rate: float | None = None
    #: In place of `train.learning_rates`.
    learning_rates: LearningRates | None = None
    #: In place of `train.per_device_train_batch_size`.
    per_device_train_batch_size: int | None = None
    #: In place of `train.gradient_accumulation_steps`.
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, {Method: METHODS}, _find_method)
        plain = self.name.replace("-", "").replace("_", "").isalnum()
        require(plain, f"name must be letters, digits, - and _, because it names a folder, got {self.name!r}")
        parts = ", ".join(self.train)
        require(len(self.train) > 0, f"train is empty: stage {self.name} would train nothing")
        require(len(set(self.train)) == len(self.train), f"train names a part twice: {parts}")
        require(self.data is None or bool(self.data), "data must name a file or a folder")
        idle = sorted(set(self.learning_rates.given()) - set(self.train)) if self.learning_rates else []
        require(
            not idle,
            f"learning_rates names {', '.join(idle)}, which stage {self.name} does not train: it trains {parts}",
        )
        check_steps(self)


@dataclass(frozen=True)
class ResolvedStage:
    """One stage of training as it runs: what it does not say itself is the recipe's."""

    name: str
    train: tuple[Part, ...]
    method: Method
    #: The one that teaches all rows; None where the method learns from none, or each row says from which.
    teacher: Teacher | None
    data: Named
    num_train_epochs: float
    #: Above 0 it replaces `num_train_epochs`.
    max_steps: int
    learning_rate: float
    learning_rates: LearningRates
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    #: By their tags, those of which each row names one; empty where one teaches all rows, or none.
    tagged: dict[str, Teacher] = field(default_factory=dict)

    @property
    def by_teacher(self) -> dict[str, "ResolvedStage"]:
        """Tag → the stage as it would be if that teacher taught all rows; where one does, by `batch.TEACHER`; empty without a teacher."""
        if self.teacher is not None:
            return {TEACHER: self}
        return {tag: replace(self, teacher=teacher, tagged={}) for tag, teacher in self.tagged.items()}


def _check_vision_learns(stage: ResolvedStage, freeze: Sequence[str]) -> None:
    """Raise ValueError where a term that trains the vision encoder and nothing else would find it frozen, and be dead work."""
    term = learned_by_vision_alone(stage.method.needs)
    unused = f"stage {stage.name} trains {', '.join(stage.train)}" if "vision" not in stage.train else ""
    frozen = "student.freeze names vision" if "vision" in freeze else unused
    require(
        not (term and frozen),
        f"{frozen}, and the method of stage {stage.name}, {stage.method.label}, uses {term}: {term} trains nothing but the vision encoder. "
        f"Let it learn, or choose another method{' or `switch: 0`' if term == SWITCH else ''}",
    )


@dataclass(frozen=True)
class Evaluate:
    """Questions that the trained student is asked at the end."""

    #: Questions, in any of the forms and files of `data.train`.
    data: str
    #: Where image paths start; the data file's own folder if not given.
    image_root: str | None = None
    #: As in `data`.
    columns: dict[str, str] = field(default_factory=dict)
    #: Questions at a time.
    batch_size: int = 32
    #: Longer answers are cut, and counted.
    max_new_tokens: int = 64
    #: Of the student's weights when it is asked; `auto` is that of the finished student.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: The evaluation stops when of more than this share of the rows something cannot be asked; fewer are skipped and counted.
    max_bad_fraction: float = MAX_BAD_FRACTION
    #: As evaluate --metric: a name for all questions, a list like [anls, count=exact], or a mapping of kinds to names; exact if not given.
    metric: tuple[str, ...] | dict[str, str] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.data), "data must name a file or a folder")
        parse_metrics(self.metric)
        check_columns(self.columns)
        at_least(self, 1, "batch_size", "max_new_tokens")
        share(self, "max_bad_fraction")


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    #: The model that is trained.
    student: Student
    #: What is distilled: a name, or a section with its knobs.
    method: Method
    #: What it is trained on.
    data: Data
    #: How it is trained.
    train: Train
    #: The model that is learned from; plain SFT needs none.
    teacher: Teacher | None = None
    #: Stages of training, one after the other; by default one that trains everything.
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage("train"),))
    #: What the student is asked at the end; nothing if not given.
    evaluate: Evaluate | None = None
    #: Answers that the student writes itself, where a method has a teacher; none if not given. `on_policy: true` takes the defaults.
    on_policy: OnPolicy | None = None
    #: What to do where student and teacher differ.
    pair: Pairing = field(default_factory=Pairing)
    #: In the place of `teacher`, several by names of your own, of which every row names one in its field `teacher` (docs/data.md).
    teachers: dict[str, Teacher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, {Method: METHODS}, _find_method)
        require(
            len(self.stages) > 0,
            "stages is an empty list: nothing would be trained. Leave it out for one stage that trains everything",
        )
        check_held_out(self.train, self.data.validation)
        require(
            self.on_policy is None or any("teacher" in stage.method.needs for stage in self.resolved_stages()),
            f"on_policy is given, and method {self.method.label} has no teacher: nothing would be learned from answers of the student",
        )
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), f"two stages have one name: {', '.join(names)}")
        named = [(f"stages.{number}.data", stage.data) for number, stage in enumerate(self.stages)]
        check_tags(
            self.teacher,
            self.teachers,
            [("data.train", self.data.train), ("data.validation", self.data.validation), *named],
        )
        check_rows_fit(self.data, self.train, self.resolved_stages(), on_policy=self.on_policy is not None)
        for given, stage in zip(self.stages, self.resolved_stages(), strict=True):
            _check_vision_learns(stage, self.student.freeze)
            for teacher in [one.teacher for one in stage.by_teacher.values()] or [None]:
                check_teacher(stage.name, stage.method, teacher, own=given.teacher is not None)
        check_devices_fit(self.teacher_sections, self.train)
        check_caches([teacher for teacher in self.teacher_sections.values() if teacher.cache is not None])

    @property
    def teacher_sections(self) -> dict[str, Teacher]:
        """Every section that names a teacher, by its dotted name: the recipe's, and those of stages."""
        tagged = {f"teachers.{tag}": teacher for tag, teacher in self.teachers.items()}
        of_stages = {f"stages.{number}.teacher": stage.teacher for number, stage in enumerate(self.stages)}
        named = {"teacher": self.teacher} | tagged | of_stages
        return {name: teacher for name, teacher in named.items() if teacher is not None}

    @property
    def models(self) -> dict[str, Student | Teacher]:
        """Every section that names a model, by its dotted name."""
        return {"student": self.student, **self.teacher_sections}

    @property
    def last_teacher(self) -> Teacher | None:
        """What the finished student is compared with: the teacher of the last stage that has one, or else the recipe's; of several by tags
        the first.
        """
        of_stages = [
            next(iter(stage.by_teacher.values())).teacher for stage in self.resolved_stages() if stage.by_teacher
        ]
        return of_stages[-1] if of_stages else self.teacher or next(iter(self.teachers.values()), None)

    def resolved_stages(self) -> tuple[ResolvedStage, ...]:
        """The stages with every inherited value filled in."""
        return tuple(self._resolve(stage) for stage in self.stages)

    def _resolve(self, stage: Stage) -> ResolvedStage:
        rates = {part: rate for part, rate in self.train.learning_rates.given().items() if part in stage.train}
        method = self.method if stage.method is None else stage.method
        inherited: dict[str, Any] = {
            "method": method,
            "teacher": self.teacher if "teacher" in method.needs else None,
            "data": self.data.train,
            "num_train_epochs": self.train.num_train_epochs,
            "max_steps": self.train.max_steps if stage.num_train_epochs is None else -1,
            "learning_rate": self.train.learning_rate,
            "learning_rates": LearningRates(**rates),
            "per_device_train_batch_size": self.train.per_device_train_batch_size,
            "gradient_accumulation_steps": self.train.gradient_accumulation_steps,
        }
        given = {name: value for name, value in vars(stage).items() if value is not None}
        tagged = self.teachers if "teacher" in method.needs and stage.teacher is None else {}
        return ResolvedStage(**inherited | given, tagged=tagged)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay `--section.field value` flags over it, as in `["--train.seed", "7"]`.

    A stage's `method` without a `name` is the recipe's method with those knobs changed. A flag that changes the name of
    a method drops the knobs that the file gave to the old one.

    Raises:
        RecipeError: anything that cannot be run, with the field, its value, and a suggestion.
    """
    return build_recipe(read_yaml(Path(path)), str(path), overrides)


def build_recipe(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The same of a recipe in memory; `source` is what messages call it."""
    flags = parse_flags(overrides)
    tree = _with_named_method(tree)
    if isinstance(tree.get("stages"), list):
        tree = {**tree, "stages": [_with_named_method(stage) for stage in tree["stages"]]}
    if tree.get("stages") is None and any(name.startswith("stages.") for name in flags):
        tree = {**tree, "stages": [{"name": "train"}]}
    # Names first: the knobs given with them belong to the new method.
    for name in sorted(flags, key=lambda name: not name.endswith("method.name")):
        if name.endswith("method.name"):
            tree = lay_over(tree, name.removesuffix(".name"), {"name": flags[name]})
        else:
            tree = lay_over(tree, name, flags[name])
    method, stages = tree.get("method"), tree.get("stages")
    if isinstance(method, dict) and isinstance(stages, list):
        tree = {**tree, "stages": [_inherit_method(stage, method) for stage in stages]}
    recipe: Recipe = Builder(
        Recipe, {Method: METHODS}, source, flags.keys(), FOREIGN, _find_method, {Method: (_ADDITIONS, _with_additions)}
    ).build(Recipe, tree)
    return recipe


def _with_named_method(section: Any) -> Any:
    """A section whose method is written as its name alone, with it as a section."""
    method = section.get("method") if isinstance(section, dict) else None
    return {**section, "method": {"name": method}} if isinstance(method, str) else section


#: What every method may have besides its knobs, and its type: terms of other methods, and weights of answer tokens.
_ADDITIONS: dict[str, Any] = {**dict.fromkeys(SAMPLE_TERMS, float), WEIGHTS: Literal["visual"] | VisualWeights | None}


def _with_additions(method: Method, given: dict[str, Any]) -> Method:
    weights = given.pop(WEIGHTS, None)
    terms = {term: weight for term, weight in given.items() if weight}
    method = method.plus(**terms) if terms else method
    return method if weights is None else method.weighted(VisualWeights() if weights == "visual" else weights)


def _find_method(kind: type, name: str) -> type | None:
    return find_plugin(name) if kind is Method else None


def _inherit_method(stage: Any, method: dict[str, Any]) -> Any:
    own = stage.get("method") if isinstance(stage, dict) else None
    return {**stage, "method": {**method, **own}} if isinstance(own, dict) and "name" not in own else stage
