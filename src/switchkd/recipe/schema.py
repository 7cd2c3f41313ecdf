"""A recipe: everything a run depends on, one typed object, read from YAML and changed by `--section.field value`.

Fields that users know from Hugging Face have their names there. Relative paths are relative to the current directory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from switchkd.data.images import MAX_PIXELS
from switchkd.methods import METHODS, Method
from switchkd.models.capture import Vision
from switchkd.models.quantize import Quantization
from switchkd.recipe.parsing import Builder, RecipeError, lay_over, parse_flags, read_yaml

#: How attention is computed; `auto` is what transformers chooses, SDPA where the model has it.
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
#: The parts of a student that a stage can train.
Part = Literal["vision", "projector", "language"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
        _require(self.r >= 1, f"r must be at least 1, got {self.r}")
        _require(self.alpha >= 1, f"alpha must be at least 1, got {self.alpha}")
        _require(0 <= self.dropout < 1, f"dropout must be at least 0 and below 1, got {self.dropout}")


@dataclass(frozen=True)
class Student:
    """The model that is trained: a checkpoint directory or a name on the Hugging Face hub."""

    path: str
    #: Of the weights while they are trained. float32 with `train.bf16` computes in bfloat16 and keeps small updates.
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
    """What to do where student and teacher do not fit."""

    #: auto: the switch gets a bridge where the shapes of the visual features differ. always: also where they do not, for encoders that were
    #: trained apart. none: such pairs are refused.
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
    #: Train on the first so many rows; on all of them if not given.
    rows: int | None = None
    #: Tokens of a row, its visual tokens included; of a longer row, the end of the last answer is cut off.
    max_length: int = 2048
    #: An image with more pixels is refused before it is decoded.
    max_pixels: int = MAX_PIXELS
    #: The run stops when more than this share of the rows cannot be used.
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        _require(bool(self.train), "train must name a file or a folder")
        _require(self.rows is None or self.rows >= 1, f"rows must be at least 1, or none for all, got {self.rows}")
        _require(self.max_length >= 1, f"max_length must be at least 1 token, got {self.max_length}")
        _require(self.max_pixels >= 1, f"max_pixels must be at least 1, got {self.max_pixels}")
        _require(
            0 <= self.max_bad_fraction < 1,
            f"max_bad_fraction must be at least 0 and below 1, got {self.max_bad_fraction}",
        )


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
        _check_length(self.num_train_epochs, self.max_steps)
        _check_step(self.learning_rate, self.per_device_train_batch_size, self.gradient_accumulation_steps)
        _require(0 <= self.warmup_ratio < 1, f"warmup_ratio must be at least 0 and below 1, got {self.warmup_ratio}")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        _require(self.max_grad_norm > 0, f"max_grad_norm must be positive, got {self.max_grad_norm}")
        _require(not (self.bf16 and self.fp16), "bf16 and fp16 are both true: choose one")
        _require(0 <= self.seed < 2**32, f"seed must lie between 0 and {2**32 - 1}, got {self.seed}")
        _require(self.logging_steps >= 1, f"logging_steps must be at least 1, got {self.logging_steps}")
        _require(self.save_steps >= 1, f"save_steps must be at least 1, got {self.save_steps}")
        limit = self.save_total_limit
        _require(limit is None or limit >= 1, f"save_total_limit must be at least 1, or none for all, got {limit}")
        _require(
            self.dataloader_num_workers >= 0,
            f"dataloader_num_workers must not be negative, got {self.dataloader_num_workers}",
        )


def _check_length(num_train_epochs: float | None, max_steps: int | None) -> None:
    steps = -1 if max_steps is None else max_steps
    _require(steps == -1 or steps >= 1, f"max_steps must be at least 1, or -1 to count epochs, got {steps}")
    if steps == -1 and num_train_epochs is not None:
        _require(
            num_train_epochs > 0,
            f"num_train_epochs is {num_train_epochs} and max_steps is {steps}: nothing would be trained",
        )


def _check_step(learning_rate: float | None, batch_size: int | None, accumulation: int | None) -> None:
    _require(learning_rate is None or learning_rate > 0, f"learning_rate must be positive, got {learning_rate}")
    _require(batch_size is None or batch_size >= 1, f"per_device_train_batch_size must be at least 1, got {batch_size}")
    _require(
        accumulation is None or accumulation >= 1, f"gradient_accumulation_steps must be at least 1, got {accumulation}"
    )


@dataclass(frozen=True)
class Stage:
    """One stage of training: the parts that learn, and what differs from the recipe. None means: as in the recipe.

    A stage that sets `num_train_epochs` and not `max_steps` counts epochs, even where the recipe's `train` counts
    steps.
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
        _require(len(self.train) > 0, f"train is empty: stage {self.name} would train nothing")
        _require(len(set(self.train)) == len(self.train), f"train names a part twice: {', '.join(self.train)}")
        _require(self.data is None or bool(self.data), "data must name a file or a folder")
        idle = sorted(set(self.learning_rates.given()) - set(self.train)) if self.learning_rates else []
        _require(
            not idle,
            f"learning_rates names {', '.join(idle)}, which stage {self.name} does not train: it trains {', '.join(self.train)}",
        )
        _check_length(self.num_train_epochs, self.max_steps)
        _check_step(self.learning_rate, self.per_device_train_batch_size, self.gradient_accumulation_steps)
        if self.method is not None and "switch" in self.method.needs:
            _require(
                "vision" in self.train,
                f"stage {self.name} trains {', '.join(self.train)}, and its method {self.method.name} uses the switch: "
                "the switch trains nothing but the vision encoder, which is frozen here. Add vision to its parts, or "
                "choose another method or `switch: 0`",
            )
        if self.method is not None and Vision() in self.method.needs:
            _require(
                "vision" in self.train,
                f"stage {self.name} trains {', '.join(self.train)}, and its method {self.method.name} compares what both models see: that "
                "term trains nothing but the vision encoder, which is frozen here. Add vision to its parts, or choose another method",
            )


ResolvedStage = Stage


@dataclass(frozen=True)
class Evaluate:
    """Questions that the trained student is asked at the end."""

    data: str
    image_root: str | None = None
    batch_size: int = 32
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        _require(bool(self.data), "data must name a file or a folder")
        _require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        _require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


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
            assert stage.method is not None
            _require(
                not ("switch" in stage.method.needs and "vision" in self.student.freeze),
                f"student.freeze names vision, and stage {stage.name} uses the switch, which trains nothing but the vision encoder: "
                "choose another method or `switch: 0`, or let it learn",
            )
            if "teacher" in stage.method.needs and self.teacher is None:
                raise ValueError(
                    f"stage {stage.name}: method {stage.method.name} needs a teacher, and the recipe names none; "
                    "add `teacher: {path: …}`, or choose method sft"
                )

    def resolved_stages(self) -> tuple[Stage, ...]:
        """The stages with every inherited value filled in: none of their fields is None."""
        return tuple(self._resolve(stage) for stage in self.stages)

    def _resolve(self, stage: Stage) -> Stage:
        inherited: dict[str, Any] = {"method": self.method, "data": self.data.train}
        for name in (
            "num_train_epochs",
            "max_steps",
            "learning_rate",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
        ):
            inherited[name] = getattr(self.train, name)
        if stage.num_train_epochs is not None:
            inherited["max_steps"] = -1
        if stage.learning_rates is None:  # those of the parts that it trains
            rates = self.train.learning_rates.given()
            inherited["learning_rates"] = LearningRates(**{part: rates[part] for part in stage.train if part in rates})
        return replace(stage, **{name: value for name, value in inherited.items() if getattr(stage, name) is None})


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay `--section.field value` flags over it, as in `["--train.seed", "7"]`.

    A stage's `method` without a `name` is the recipe's method with those knobs changed. A flag that changes the name of
    a method drops the knobs that the file gave to the old one.

    Raises:
        RecipeError: anything that cannot be run, with the field, what was found, and a suggestion.
    """
    return build_recipe(read_yaml(Path(path)), str(path), overrides)


def build_recipe(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """The same of a recipe in memory; `source` is what messages call it."""
    flags = parse_flags(overrides)
    if tree.get("stages") is None and any(name.startswith("stages.") for name in flags):
        tree = {**tree, "stages": [{"name": "train"}]}
    # Names first: the knobs beside them belong to the new method.
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


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default included: what `save_recipe` writes."""
    tree: dict[str, Any] = asdict(recipe)
    tree["method"] = _named(recipe.method)
    for stage, written in zip(recipe.stages, tree["stages"], strict=True):
        written["method"] = None if stage.method is None else _named(stage.method)
        written["train"] = list(stage.train)
    tree["stages"] = list(tree["stages"])
    tree["student"]["freeze"] = list(recipe.student.freeze)
    tree["train"]["report_to"] = list(recipe.train.report_to)
    sections = ("teacher", "student", "pair", "method", "data", "train", "stages", "evaluate")
    return {section: tree[section] for section in sections}


def _named(method: Method) -> dict[str, Any]:
    return {"name": method.name, **asdict(method)}  # type: ignore[call-overload]  # every method is a dataclass


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe; `load_recipe` reads the equal recipe back."""
    Path(path).write_text(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")


__all__ = [
    "Data", "Evaluate", "LearningRates", "LoRA", "Pairing", "Part", "Recipe", "RecipeError", "Stage", "Student", "Teacher", "Train",
    "build_recipe", "load_recipe", "recipe_to_dict", "save_recipe",
]  # fmt: skip
