"""A recipe: everything a run depends on, one typed object, read from YAML and changed by `--section.field value`.

Fields that users know from Hugging Face have their names there. Relative paths are relative to the current directory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from switchkd.data.errors import MAX_BAD_FRACTION
from switchkd.data.images import MAX_PIXELS
from switchkd.methods import METHODS, Method
from switchkd.models.capture import Vision
from switchkd.models.quantize import Quantization
from switchkd.recipe.packages import check_trackers
from switchkd.recipe.parsing import Builder, lay_over, parse_flags, read_yaml
from switchkd.recipe.saving import recipe_to_dict as recipe_to_dict
from switchkd.recipe.saving import save_recipe as save_recipe

#: How attention is computed; `auto` is what transformers chooses, SDPA where the model has it.
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
#: The parts of a student that a stage can train.
Part = Literal["vision", "projector", "language"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _at_least(section: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        _require(value is None or value >= least, f"{name} must be at least {least}, got {value}")


def _share(section: object, name: str) -> None:
    value = getattr(section, name)
    _require(0 <= value < 1, f"{name} must be at least 0 and below 1, got {value}")


@dataclass(frozen=True)
class Teacher:
    """The frozen model that is learned from: a checkpoint directory or a name on the Hugging Face hub."""

    path: str
    #: "auto" keeps the precision of the checkpoint.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: Attention = "auto"
    #: Of the language model's linear layers, with bitsandbytes: the targets are then those of a slightly different teacher.
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        _require(bool(self.path), "path must not be empty")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on all linear layers of the student's language model, which is frozen itself."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self, 1, "r", "alpha")
        _share(self, "dropout")


@dataclass(frozen=True)
class Student:
    """The model that is trained: a checkpoint directory or a name on the Hugging Face hub."""

    path: str
    #: Of the weights as they are loaded. Parts that learn are float32 at least; those that are frozen keep this. `train.bf16` computes in
    #: bfloat16 whatever this is.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    attn_implementation: Attention = "auto"
    lora: LoRA | None = None
    #: QLoRA: the language model's frozen linear layers in 4 bits, with bitsandbytes.
    quantization: Literal["4bit"] | None = None
    #: What no stage trains: parts (vision, projector, language), or modules and parameters by their dotted names, with * for any text.
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.path), "path must not be empty")
        _require(
            self.quantization is None or self.lora is not None,
            "quantization 4bit makes weights that cannot be trained: add `lora`, whose adapters are",
        )


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of the parts; a part without one has `learning_rate`."""

    vision: float | None = None
    projector: float | None = None
    language: float | None = None

    def __post_init__(self) -> None:
        for part, rate in asdict(self).items():
            _require(
                rate is None or rate > 0,
                f"{part} must be positive, got {rate}; to keep a part as it is, leave it out of `train`",
            )

    def given(self) -> dict[str, float]:
        """Part → rate, of those that have one."""
        return {part: rate for part, rate in asdict(self).items() if rate is not None}


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
        _require(self.fit_rows >= 0, f"fit_rows must not be negative, got {self.fit_rows}")
        _require(0 < self.min_aligned <= 1, f"min_aligned must be above 0 and at most 1, got {self.min_aligned}")


@dataclass(frozen=True)
class Data:
    """Training rows: LLaVA JSON, or `messages` + `images` as JSON, JSONL, Parquet or a saved data set; detected."""

    train: str
    #: Where image paths start; the data file's own folder if not given.
    image_root: str | None = None
    #: The student's chat template: its `own` (one of ours only where it has none that can be used), `llava` (LLaVA 1.5's), or a file.
    template: str = "own"
    #: Train on the first so many rows; on all of them if not given.
    rows: int | None = None
    #: Tokens of a row, its visual tokens included; of a longer row, the end of the last answer is cut off. If not given, as many as both
    #: models have positions for, up to 32,768.
    max_length: int | None = None
    #: An image with more pixels is refused before it is decoded.
    max_pixels: int = MAX_PIXELS
    #: The run stops when more than this share of the rows cannot be used.
    max_bad_fraction: float = MAX_BAD_FRACTION

    def __post_init__(self) -> None:
        _require(bool(self.train), "train must name a file or a folder")
        _require(self.rows is None or self.rows >= 1, f"rows must be at least 1, or none for all, got {self.rows}")
        _at_least(self, 1, "max_length", "max_pixels")
        _share(self, "max_bad_fraction")


@dataclass(frozen=True)
class Train:
    """How it is trained; names and meanings as in `transformers.TrainingArguments`."""

    output: str
    num_train_epochs: float = 1.0
    #: Optimizer steps; above 0 it replaces `num_train_epochs`.
    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    learning_rates: LearningRates = LearningRates()
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    bf16: bool = False
    fp16: bool = False
    #: Recompute the student's activations in the backward pass: less memory, one more of its forward passes.
    gradient_checkpointing: bool = False
    #: The same for the teacher's language model on the way of the switch, the largest activations of a step.
    switch_checkpointing: bool = False
    #: `fused` holds the logits of some tokens at a time; `plain` all of them, for debugging. They give the same numbers.
    loss: Literal["fused", "plain"] = "fused"
    seed: int = 42
    logging_steps: int = 10
    save_steps: int = 500
    #: Older checkpoints beyond this many are deleted; none = keep all.
    save_total_limit: int | None = 2
    dataloader_num_workers: int = 0
    #: Compile every transformer layer of both models, with this backend of torch.compile.
    torch_compile: bool = False
    torch_compile_backend: Literal["inductor", "cudagraphs", "aot_eager", "eager"] = "inductor"
    #: Liger's fused norm, SwiGLU and rotary kernels in both language models; needs a CUDA GPU and the package liger-kernel.
    liger_kernel: bool = False
    #: Put rows of about one length into a batch, so that little of it is padding.
    group_by_length: bool = False
    report_to: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        _require(bool(self.output), "output must name a folder")
        check_trackers(self.report_to)
        _check_steps(self)
        _share(self, "warmup_ratio")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        _require(self.max_grad_norm > 0, f"max_grad_norm must be positive, got {self.max_grad_norm}")
        _require(not (self.bf16 and self.fp16), "bf16 and fp16 are both true: choose one")
        _require(0 <= self.seed < 2**32, f"seed must lie between 0 and {2**32 - 1}, got {self.seed}")
        _at_least(self, 1, "logging_steps", "save_steps")
        _at_least(self, 0, "dataloader_num_workers")
        limit = self.save_total_limit
        _require(limit is None or limit >= 1, f"save_total_limit must be at least 1, or none for all, got {limit}")


@dataclass(frozen=True)
class Stage:
    """One stage of training as it is written: the parts that learn, and what differs from the recipe. None means: as in the recipe.

    A stage that sets `num_train_epochs` and not `max_steps` counts epochs, even where the recipe's `train` counts steps.
    """

    name: str
    train: tuple[Part, ...] = ("vision", "projector", "language")
    method: Method | None = None
    data: str | None = None
    num_train_epochs: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    learning_rates: LearningRates | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "").isalnum()
        _require(plain, f"name must be letters, digits, - and _, because it names a folder, got {self.name!r}")
        parts = ", ".join(self.train)
        _require(len(self.train) > 0, f"train is empty: stage {self.name} would train nothing")
        _require(len(set(self.train)) == len(self.train), f"train names a part twice: {parts}")
        _require(self.data is None or bool(self.data), "data must name a file or a folder")
        idle = sorted(set(self.learning_rates.given()) - set(self.train)) if self.learning_rates else []
        _require(
            not idle,
            f"learning_rates names {', '.join(idle)}, which stage {self.name} does not train: it trains {parts}",
        )
        _check_steps(self)


@dataclass(frozen=True)
class ResolvedStage:
    """One stage of training as it runs: what it does not say itself is the recipe's."""

    name: str
    train: tuple[Part, ...]
    method: Method
    data: str
    num_train_epochs: float
    #: Above 0 it replaces `num_train_epochs`.
    max_steps: int
    learning_rate: float
    learning_rates: LearningRates
    per_device_train_batch_size: int
    gradient_accumulation_steps: int


def _check_steps(section: Train | Stage) -> None:
    """What can be wrong with the fields that a stage may set for itself."""
    epochs, steps, rate = section.num_train_epochs, section.max_steps, section.learning_rate
    _require(
        steps is None or steps == -1 or steps >= 1, f"max_steps must be at least 1, or -1 to count epochs, got {steps}"
    )
    _require(
        steps not in (None, -1) or epochs is None or epochs > 0,
        f"num_train_epochs is {epochs} and max_steps counts no steps: nothing would be trained",
    )
    _require(rate is None or rate > 0, f"learning_rate must be positive, got {rate}")
    _at_least(section, 1, "per_device_train_batch_size", "gradient_accumulation_steps")


def _check_vision_learns(stage: ResolvedStage, freeze: Sequence[str]) -> None:
    """Raise ValueError where a term that trains the vision encoder and nothing else would find it frozen, and be dead work."""
    needs = stage.method.needs
    term = "the switch" if "switch" in needs else "the term on V(x)" if Vision() in needs else ""
    unused = f"stage {stage.name} trains {', '.join(stage.train)}" if "vision" not in stage.train else ""
    frozen = "student.freeze names vision" if "vision" in freeze else unused
    _require(
        not (term and frozen),
        f"{frozen}, and the method of stage {stage.name}, {stage.method.name}, uses {term}: {term} trains nothing but the vision encoder. "
        f"Let it learn, or choose another method{' or `switch: 0`' if 'switch' in needs else ''}",
    )


@dataclass(frozen=True)
class Evaluate:
    """Questions that the trained student is asked at the end."""

    data: str
    image_root: str | None = None
    batch_size: int = 32
    max_new_tokens: int = 64
    #: The evaluation stops when of more than this share of the rows something cannot be asked; fewer are skipped and counted.
    max_bad_fraction: float = MAX_BAD_FRACTION

    def __post_init__(self) -> None:
        _require(bool(self.data), "data must name a file or a folder")
        _at_least(self, 1, "batch_size", "max_new_tokens")
        _share(self, "max_bad_fraction")


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    student: Student
    method: Method
    data: Data
    train: Train
    teacher: Teacher | None = None
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage("train"),))
    evaluate: Evaluate | None = None
    pair: Pairing = field(default_factory=Pairing)

    def __post_init__(self) -> None:
        _require(
            len(self.stages) > 0,
            "stages is an empty list: nothing would be trained. Leave it out for one stage that trains everything",
        )
        names = [stage.name for stage in self.stages]
        _require(len(set(names)) == len(names), f"two stages have one name: {', '.join(names)}")
        for stage in self.resolved_stages():
            _check_vision_learns(stage, self.student.freeze)
            _require(
                self.teacher is not None or "teacher" not in stage.method.needs,
                f"stage {stage.name}: method {stage.method.name} needs a teacher, and the recipe names none; "
                "add `teacher: {path: …}`, or choose method sft",
            )

    def resolved_stages(self) -> tuple[ResolvedStage, ...]:
        """The stages with every inherited value filled in."""
        return tuple(self._resolve(stage) for stage in self.stages)

    def _resolve(self, stage: Stage) -> ResolvedStage:
        rates = {part: rate for part, rate in self.train.learning_rates.given().items() if part in stage.train}
        inherited: dict[str, Any] = {
            "method": self.method,
            "data": self.data.train,
            "num_train_epochs": self.train.num_train_epochs,
            "max_steps": self.train.max_steps if stage.num_train_epochs is None else -1,
            "learning_rate": self.train.learning_rate,
            "learning_rates": LearningRates(**rates),
            "per_device_train_batch_size": self.train.per_device_train_batch_size,
            "gradient_accumulation_steps": self.train.gradient_accumulation_steps,
        }
        return ResolvedStage(**inherited | {name: value for name, value in vars(stage).items() if value is not None})


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
    recipe: Recipe = Builder(Recipe, {Method: METHODS}, source, flags.keys()).build(Recipe, tree)
    return recipe


def _inherit_method(stage: Any, method: dict[str, Any]) -> Any:
    own = stage.get("method") if isinstance(stage, dict) else None
    return {**stage, "method": {**method, **own}} if isinstance(own, dict) and "name" not in own else stage
