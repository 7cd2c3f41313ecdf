"""The part of the trainer that looks at held-out rows while it trains, and keeps the checkpoint that is best on them."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import ProcessorMixin
from transformers.trainer_utils import EvalLoopOutput

from switchkd.batch import AnyBatch, named
from switchkd.losses import SummedLoss
from switchkd.methods import Need
from switchkd.train import checkpoint
from switchkd.train.finite_trainer import FiniteTrainer
from switchkd.train.held_out import HeldOut
from switchkd.train.sampler import FilledUp, WithoutFillers
from switchkd.train.speed import Speed
from switchkd.train.stop import shielded
from switchkd.train.term_sums import TermSums, add_terms, means

_log = logging.getLogger(__name__)


class EvaluatingTrainer(FiniteTrainer):
    """Measures the loss and its terms on held-out rows, and how many of their questions are answered exactly.

    `Trainer.evaluate`, `state.best_metric`, `EarlyStoppingCallback` and what else is built on them work as in transformers. A checkpoint
    is saved wherever the metric is better than before, and stays.
    """

    processor: ProcessorMixin
    speed: Speed

    def __init__(
        self, *args: Any, held_out: HeldOut | None = None, held_out_collator: Any = None, **kwargs: Any
    ) -> None:
        arguments = kwargs["args"]
        self._collator = held_out_collator
        if held_out_collator is not None and arguments.world_size > 1:
            self._collator = WithoutFillers(held_out_collator)
        if held_out is not None:
            rows: Any = held_out.rows
            if arguments.world_size > 1:
                rows = FilledUp(rows, arguments.per_device_eval_batch_size * arguments.world_size)
            kwargs["eval_dataset"] = rows
        super().__init__(*args, **kwargs)
        self.held_out = held_out
        self._held_out_sums: TermSums = {}
        self._run = str(arguments.output_dir)

    # ---- where the stage is

    @property
    def _place(self) -> tuple[float, int]:
        """What of the stage is done when this step is, and the step's number from 0."""
        return (self.state.global_step + 1) / max(self.state.max_steps, 1), self.state.global_step

    @property
    def _needs(self) -> frozenset[Need]:
        """What the method needs at this step."""
        return self.step.method.at(*self._place).needs

    # ---- measuring

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """What held-out rows say. Training goes on as if nobody had asked: with the same random numbers, and the clock set back."""
        begin = time.monotonic()
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            metrics = super().evaluate(*args, **kwargs)
        self.speed.leave_out(time.monotonic() - begin)
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's own, with means over all answer tokens in the place of its mean of batches."""
        self._held_out_sums = {}
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        measured = means(self._held_out_sums, self.accelerator)
        if self.held_out is None:
            return output
        if self.held_out.questions:
            with self.accelerator.autocast():
                measured["exact_match"] = self.held_out.exact_match_percent(
                    self.step.pair.student.model, self.processor, self.args.eval_batch_size
                )
        metrics = (output.metrics or {}) | {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        return output._replace(metrics=metrics, num_samples=len(self.held_out.rows))

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Sum up one batch; terms have the weights that they have at the end of the stage.

        Raises:
            FloatingPointError: a loss that is not finite.
        """
        batch: AnyBatch = self._prepare_inputs(inputs)  # type: ignore[assignment]
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                sums: SummedLoss = model(batch)
        except (ValueError, IndexError, RuntimeError) as error:
            error.args = (f"step {self.state.global_step}, held-out samples {named(batch.keys)}: {error}",)
            raise
        if not torch.isfinite(sums.loss):
            terms = ", ".join(f"{name} {value.item():.4g}" for name, value in sums.terms.items())
            raise FloatingPointError(
                f"step {self.state.global_step}, held-out samples {named(batch.keys)}: the loss is not finite ({terms}). Look at these "
                "rows of data.validation, and at the weights of an earlier checkpoint"
            )
        add_terms(self._held_out_sums, sums, own_inputs=batch.own_inputs, loss=True)
        return None, None, None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The Trainer's own, as that of training: see `left_on_host`."""
        of_training = self.data_collator
        self.data_collator = self._collator or of_training
        try:
            return left_on_host(super().get_eval_dataloader(eval_dataset))
        finally:
            self.data_collator = of_training

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    # ---- the best checkpoint

    @property
    def best(self) -> Path | None:
        """The checkpoint that is best on the held-out rows so far."""
        step = self.state.best_global_step
        return Path(self._run) / f"checkpoint-{step}" if step else None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the Trainer's; what is better, and what training ends with early, is saved where no checkpoint is due, too."""
        better = super()._determine_best_metric(metrics, trial)
        if better or self.control.should_training_stop:
            self.control.should_save = True
        return better

    def go_on_with_best(self) -> None:
        """When a run is resumed: where its best checkpoint is gone, the best is sought anew."""
        if self.best is not None and (damage := checkpoint.damaged(self.best)):
            _log.warning("%s was the best checkpoint and is damaged (%s): the best is sought anew", self.best, damage)
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def _load_best_model(self) -> None:
        assert self.best is not None
        self._load_from_checkpoint(str(self.best))

    def _finalize_training(self, *args: Any) -> Any:
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # else the Trainer removes the last one
        try:
            return super()._finalize_training(*args)
        finally:
            self.args.save_total_limit = limit


def left_on_host(loader: Any) -> DataLoader[Any]:
    """A loader whose batches stay on the host, and whose workers finish the step when a signal comes."""
    loader.device = None  # they are counted on the host, and go to the device without waiting (`_prepare_inputs`)
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = shielded(inner.worker_init_fn)
    return loader  # type: ignore[no-any-return]
