"""The section `train` of a recipe, and what a stage may set of it for itself."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from switchkd.recipe.field_checks import at_least, require, share
from switchkd.recipe.packages import check_trackers
from switchkd.recipe.trainer_arguments import check_arguments
from switchkd.typed_fields import check_fields


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of the parts; a part without one has `learning_rate`."""

    #: Of the vision encoder.
    vision: float | None = None
    #: Of the projector.
    projector: float | None = None
    #: Of the language model.
    language: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for part, rate in asdict(self).items():
            require(
                rate is None or rate > 0,
                f"{part} must be positive, got {rate}; to keep a part as it is, leave it out of `train`",
            )

    def given(self) -> dict[str, float]:
        """Part → rate, of those that have one."""
        return {part: rate for part, rate in asdict(self).items() if rate is not None}


@dataclass(frozen=True)
class Train:
    """How it is trained; names and meanings as in `transformers.TrainingArguments`."""

    #: The folder of the run. The same command goes on from the newest checkpoint there.
    output: str
    #: How often all rows are seen.
    num_train_epochs: float = 1.0
    #: Optimizer steps; above 0 it replaces `num_train_epochs`.
    max_steps: int = -1
    #: Rows of one device at a time: as many as its memory takes.
    per_device_train_batch_size: int = 8
    #: So many of these batches make one optimizer step.
    gradient_accumulation_steps: int = 1
    #: The highest, after the warm-up.
    learning_rate: float = 2e-5
    #: Other rates for parts.
    learning_rates: LearningRates = LearningRates()
    #: How the rate falls after the warm-up.
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    #: The share of the steps in which the rate rises from 0.
    warmup_ratio: float = 0.03
    #: Of AdamW.
    weight_decay: float = 0.0
    #: Longer gradients are cut to this length.
    max_grad_norm: float = 1.0
    #: Compute in bfloat16, as GPUs from 2020 on do well; what learns stays float32.
    bf16: bool = False
    #: The same in float16, for older GPUs.
    fp16: bool = False
    #: Recompute the student's activations in the backward pass: less memory, one more of its forward passes.
    gradient_checkpointing: bool = False
    #: The same for the teacher's language model on the way of the switch, the largest activations of a step.
    switch_checkpointing: bool = False
    #: `fused` holds the logits of some tokens at a time; `plain` all of them, for debugging. They give the same numbers.
    loss: Literal["fused", "plain"] = "fused"
    #: Of the order of the rows and of all that is drawn.
    seed: int = 42
    #: A line of metrics for so many steps.
    logging_steps: int = 10
    #: A checkpoint after so many steps.
    save_steps: int = 500
    #: Older checkpoints beyond this many are deleted; none = keep all.
    save_total_limit: int | None = 2
    #: `data.validation` is looked at after so many steps, and at the end of a stage; if not given, at the end alone.
    eval_steps: int | None = None
    #: So many of its questions are answered each time, greedily, in at most 32 tokens, for `exact_match`; 0: none.
    eval_questions: int = 64
    #: What the best checkpoint is best in, on `data.validation`: loss and ce are best where they are least, exact_match where it is most.
    metric_for_best_model: Literal["loss", "ce", "exact_match"] = "loss"
    #: Go on from the best checkpoint of a stage, or finish with it; else with the last one. Both are kept.
    load_best_model_at_end: bool = False
    #: End a stage when `metric_for_best_model` was no better so many times in a row.
    early_stopping: int | None = None
    #: Processes that prepare batches beside the training.
    dataloader_num_workers: int = 0
    #: Compile every transformer layer of both models.
    torch_compile: bool = False
    #: Of torch.compile.
    torch_compile_backend: Literal["inductor", "cudagraphs", "aot_eager", "eager"] = "inductor"
    #: Fused norms, SwiGLU and rotary embeddings in both language models. auto: Liger's on a CUDA GPU, where it is installed and fits.
    kernels: Literal["auto", "liger", "none"] = "auto"
    #: Put rows of about one length into a batch, so that little of it is padding.
    group_by_length: bool = False
    #: Trackers: tensorboard, wandb, mlflow, …; each needs its package.
    report_to: tuple[str, ...] = ("tensorboard",)
    #: Handed to `transformers.TrainingArguments` as they are: `{optim: adamw_8bit, adam_beta2: 0.95}`.
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.output), "output must name a folder")
        object.__setattr__(self, "arguments", check_arguments(self.arguments, vars(self)))
        require(
            "warmup_steps" not in self.arguments or self.warmup_ratio in (0.0, type(self).warmup_ratio),
            f"arguments names warmup_steps, and warmup_ratio is {self.warmup_ratio}: keep one",
        )
        check_trackers(self.report_to)
        check_steps(self)
        share(self, "warmup_ratio")
        require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        require(self.max_grad_norm > 0, f"max_grad_norm must be positive, got {self.max_grad_norm}")
        require(not (self.bf16 and self.fp16), "bf16 and fp16 are both true: choose one")
        require(0 <= self.seed < 2**32, f"seed must lie between 0 and {2**32 - 1}, got {self.seed}")
        at_least(self, 1, "logging_steps", "save_steps", "eval_steps", "early_stopping")
        at_least(self, 0, "dataloader_num_workers", "eval_questions")
        require(
            self.metric_for_best_model != "exact_match" or self.eval_questions > 0,
            "metric_for_best_model is exact_match and eval_questions is 0: nothing would be asked",
        )
        limit = self.save_total_limit
        require(limit is None or limit >= 1, f"save_total_limit must be at least 1, or none for all, got {limit}")


def check_held_out(train: Train, validation: Any) -> None:
    """Raise ValueError where something is asked of held-out rows, and there are none."""
    asked = [name for name in ("eval_steps", "load_best_model_at_end", "early_stopping") if getattr(train, name)]
    require(
        validation is not None or not asked,
        f"train.{' and train.'.join(asked)} is about rows that are held out, and there are none: give data.validation",
    )


def check_steps(section: Any) -> None:
    """What can be wrong with the fields that a stage may set for itself."""
    epochs, steps, rate = section.num_train_epochs, section.max_steps, section.learning_rate
    require(
        steps is None or steps == -1 or steps >= 1, f"max_steps must be at least 1, or -1 to count epochs, got {steps}"
    )
    require(
        steps not in (None, -1) or epochs is None or epochs > 0,
        f"num_train_epochs is {epochs} and max_steps counts no steps: nothing would be trained",
    )
    require(rate is None or rate > 0, f"learning_rate must be positive, got {rate}")
    at_least(section, 1, "per_device_train_batch_size", "gradient_accumulation_steps")
