"""Which checkpoint a stage ends with, and how transformers' Trainer is told to look for the best one."""

from typing import Any

from accelerate.utils import DistributedType
from transformers import EarlyStoppingCallback, TrainerState

from switchkd.recipe.schema import Recipe
from switchkd.train.context import StageContext
from switchkd.train.evaluating_trainer import EvaluatingTrainer
from switchkd.train.held_out import ANSWER_TOKENS

#: How processes share the work where each of them has all weights.
_WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


def evaluation_arguments(context: StageContext, steps: int) -> dict[str, Any]:
    """Of `transformers.TrainingArguments`, those about held-out rows, for a stage of so many steps."""
    train = context.run.recipe.train
    if context.held_out is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": min(train.eval_steps or steps, steps),
        "per_device_eval_batch_size": context.stage.per_device_train_batch_size,
        "metric_for_best_model": train.metric_for_best_model,
        "greater_is_better": train.metric_for_best_model == "exact_match",
        "restore_callback_states_from_checkpoint": train.early_stopping is not None,
    }


def check_whole(trainer: EvaluatingTrainer, recipe: Recipe) -> None:
    """Raise ValueError for what needs the whole student in every process, where its weights are sharded."""
    if trainer.accelerator.distributed_type in _WHOLE:
        return
    asked = {
        "train.eval_questions": trainer.held_out is not None and bool(trainer.held_out.questions),
        "train.load_best_model_at_end": recipe.train.load_best_model_at_end,
        "on_policy": recipe.on_policy is not None,
    }
    if named := [name for name, wanted in asked.items() if wanted]:
        raise ValueError(
            f"{', '.join(named)}: that needs the whole student in every process, and its weights are "
            f"sharded ({trainer.accelerator.distributed_type.value}). Set train.eval_questions to 0 and leave the others out: the losses "
            "on held-out rows and the best checkpoint are there all the same"
        )


def described(context: StageContext, steps: int) -> str | None:
    """What will be measured on held-out rows, for the user; None without any."""
    held_out, train = context.held_out, context.run.recipe.train
    if held_out is None:
        return None
    when = "at the end" if (train.eval_steps or steps) >= steps else f"after every {train.eval_steps} steps"
    questions = f"exact match of {len(held_out.questions)} answers of at most {ANSWER_TOKENS} tokens, "
    return (
        f"{len(held_out.rows):,} held-out rows: their loss, {questions if held_out.questions else ''}{when}; the checkpoint with the best "
        f"{train.metric_for_best_model} is kept"
    )


def stopped_early(state: TrainerState) -> bool:
    """Whether a stage has ended because it was no better any more."""
    saved: Any = state.stateful_callbacks or {}  # its hint says a list, which the Trainer makes a mapping of
    kept = saved.get(EarlyStoppingCallback.__name__)
    if not isinstance(kept, dict):
        return False
    counted, patience = kept["attributes"]["early_stopping_patience_counter"], kept["args"]["early_stopping_patience"]
    return bool(counted >= patience)
