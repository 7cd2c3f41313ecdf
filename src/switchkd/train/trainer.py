"""A thin `transformers.Trainer`: the loss, the log, and what a checkpoint holds. Everything else is the Trainer's own."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import ProcessorMixin, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from switchkd.losses import PlainTerms, SummedLoss, fused_loss, plain_loss, with_rows
from switchkd.methods import Method
from switchkd.pairing import Pair
from switchkd.train import checkpoint
from switchkd.train.parts import set_rates
from switchkd.train.sampler import LengthGroupedSampler
from switchkd.types import Batch, Hidden, answer_positions, answer_targets

_log = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
    """Trains `pair.student` with `method`.

    The loss is the sum of the method's terms over all answer tokens of the global batch (every rank, every accumulation step), divided
    once by their number. So batch 4 × 1, 1 × 4 accumulation and 2 processes × 2 are the same step.

    Args:
        pair: student and frozen teacher.
        method: whose terms are summed.
        args: the Trainer's arguments.
        loss: `fused` walks the answer tokens in chunks; `plain` makes all logits at once, for debugging.
        rates: part → learning rate, of the parts that have one of their own.
        processor: saved with every checkpoint.
        card: the text of the model card of every checkpoint.
        kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        pair: Pair,
        method: Method,
        args: TrainingArguments,
        *,
        loss: Literal["fused", "plain"] = "fused",
        rates: Mapping[str, float] | None = None,
        processor: ProcessorMixin,
        card: str,
        **kwargs: Any,
    ) -> None:
        callbacks = [StopOnNonFiniteGradient(), *kwargs.pop("callbacks", [])]
        super().__init__(model=pair, args=args, callbacks=callbacks, **kwargs)
        self.pair = pair
        self.method = method
        self.loss = loss
        self.rates = rates or {}
        self.processor = processor
        self.card = card
        self._run = str(args.output_dir)
        self._staging: str | None = None
        self._sums: dict[str, Tensor] = {}
        self._told = False
        #: The names of the method's terms, from the first batch on.
        self.terms: list[str] = []

    # ---- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of all terms on this rank's micro-batch over the answer tokens of the global batch."""
        if num_items_in_batch is None or num_items_in_batch == 0:
            raise ValueError(
                f"step {self.state.global_step}: the global batch has no answer token, so there is nothing to learn from"
            )
        targets = answer_targets(inputs["labels"])
        answers = answer_positions(inputs["labels"]).sum(dim=1)
        sums: SummedLoss = model(
            inputs, self.method.needs, lambda hidden: self._with_rows(self._sum(hidden, targets), hidden, answers)
        )
        if not torch.isfinite(sums.loss):
            found = ", ".join(f"{name} {value.item():.4g}" for name, value in sums.terms.items())
            raise FloatingPointError(
                f"step {self.state.global_step}: the loss is not finite ({found}); stopped before the update"
            )
        self._record(sums, len(targets), len(inputs["aligned"]) if "aligned" in inputs else None)
        # DDP averages gradients over ranks; the division here is already global
        loss = sums.loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, sums) if return_outputs else loss

    def _sum(self, hidden: Hidden, targets: Tensor) -> SummedLoss:
        """The method's terms, from hidden states to sums over the answer tokens."""
        method = self._method_now()
        if self.loss == "plain":
            sums = plain_loss(PlainTerms(method.terms, method.statistics), targets, hidden)
        else:
            sums = fused_loss(
                method.chunk_loss(),
                targets,
                hidden.student,
                hidden.student_head,
                hidden.teacher,
                hidden.switch,
                hidden.teacher_head,
                vocabulary=hidden.vocabulary,
                compared=hidden.compared,
                ids=hidden.ids,
            )
        if hidden.teacher is not None and (self.state.global_step + 1) % self.args.logging_steps == 0:
            dropped = self.pair.dropped_mass(hidden.teacher)
            if dropped is not None:
                sums = sums._replace(statistics=sums.statistics | {"dropped_mass": dropped.sum()})
        return sums

    def _method_now(self) -> Method:
        return self.method.at((self.state.global_step + 1) / max(self.state.max_steps, 1))

    def _with_rows(self, sums: SummedLoss, hidden: Hidden, answers: Tensor) -> SummedLoss:
        """The same with the method's terms about what is inside both models."""
        if hidden.student_inner is None or hidden.teacher_inner is None:
            return sums
        with torch.autocast(answers.device.type, enabled=False):  # products and maps in the precision of what they get
            values = self._method_now().row_terms(hidden.student_inner, hidden.teacher_inner, self.pair.learned)
        sums = with_rows(sums, values, answers)
        if (
            self.pair.learned is not None
        ):  # a rank whose rows have no image must give these a gradient too, or DDP waits
            sums = sums._replace(loss=sums.loss + 0 * sum(p.sum() for p in self.pair.learned.parameters()))
        return sums

    # ---- optimizer

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own optimizer, with the parts' learning rates."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.rates:
            set_rates(optimizer, self.pair.student, self.rates)
        return optimizer

    # ---- log

    def _record(self, sums: SummedLoss, tokens: int, compared: int | None) -> None:
        """Terms per answer token, statistics per token that is compared with the teacher's."""
        if not self._told and self.is_world_process_zero():
            _log.info(
                "%s loss: logits of %d answer tokens at a time, of %d in the first batch", self.loss, sums.chunk, tokens
            )
        self._told = True
        self.terms[:] = sums.terms
        counted = {name: (total, tokens) for name, total in sums.terms.items()}
        counted |= {name: (total, tokens if compared is None else compared) for name, total in sums.statistics.items()}
        if compared is not None:
            counted["aligned"] = (sums.loss.new_tensor(compared), tokens)
        counted["answer_tokens"] = (sums.loss.new_tensor(tokens, dtype=torch.float64), 1)
        for name, (total, count) in counted.items():
            entry = torch.stack([total.double(), total.new_full((), count, dtype=torch.float64)])
            self._sums[name] = self._sums.get(name, 0) + entry

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to each log line every term and statistic as its mean over the answer tokens since the last line, in nats.

        `dropped_mass` is a mean too, but over the tokens of the logged step alone: it costs a product with the teacher's whole head.
        """
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), reduction="sum")
            logs |= {
                name: (total / tokens.clamp(min=1)).item() for name, (total, tokens) in zip(names, sums, strict=True)
            }
            logs["answer_tokens"] = sums[names.index("answer_tokens"), 0].item()
            self._sums = {}
        if "learning_rate" in logs and self.rates:  # what is in it is the first group's
            assert self.optimizer is not None
            group = self.optimizer.param_groups[0]
            share = group["lr"] / group["initial_lr"]
            logs["learning_rate"] = self.args.learning_rate * share
            logs |= {f"learning_rate_{part}": rate * share for part, rate in self.rates.items()}
        super().log(logs, start_time)

    # ---- rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(
            rows["length"],  # type: ignore[index]  # guard.check_rows has added it
            self.args.per_device_train_batch_size * self.args.world_size,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            directory = output_dir or self._run
            checkpoint.save_student(self.pair.student, self.processor, self.card, directory, state_dict)
            checkpoint.save_beside(self.pair.beside, directory, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        checkpoint.load_student(self.pair.student, resume_from_checkpoint)
        checkpoint.load_beside(self.pair.beside, resume_from_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write into a staging folder, and rename it when it is complete."""
        run, limit = self._run, self.args.save_total_limit
        if self.args.should_save:
            checkpoint.clear_staging(run)
        self.accelerator.wait_for_everyone()
        self._staging, self.args.save_total_limit = checkpoint.staging(run), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoint.publish(run, self.state.global_step)
            rotate_checkpoints(output_dir=run, save_total_limit=limit)
        self.accelerator.wait_for_everyone()


class StopOnNonFiniteGradient(TrainerCallback):
    """Raise before the optimizer applies a gradient that is not finite. Under fp16 the loss scaler skips such steps by design."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the norm of all gradients."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not args.fp16 and not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise FloatingPointError(f"step {state.global_step}: the gradient is not finite; stopped before the update")
