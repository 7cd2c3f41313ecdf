"""The part of the trainer that stops at a loss, a gradient or a weight that is not finite, and says where it came from."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer

from switchkd.batch import AnyBatch, named
from switchkd.losses import SummedLoss
from switchkd.models.finite import describe, not_finite
from switchkd.train.explain import explain
from switchkd.train.finite_watch import FiniteWatch
from switchkd.train.sharding import whole
from switchkd.train.step import DistillationStep

_log = logging.getLogger(__name__)
#: How processes share the work where every one has all gradients as plain tensors.
_WHOLE = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class FiniteTrainer(Trainer):
    """Makes no update with a loss or a gradient that is not finite, and no checkpoint after it.

    On a CPU, and where the optimizer cannot leave an update out by itself, each verdict is looked at before the update. On a GPU that
    would make the host wait at every micro-batch: there the optimizer leaves the weights alone from the first NaN on
    (`FiniteWatch.bad`). The host learns of it when the verdict has been copied, at the latest before a line of the log or a checkpoint is
    written, and takes the step again from its kept batches, with the weights that it had: the stop is then what it would have been at once.
    """

    step: DistillationStep

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Keys of the micro-batches of the step that is being made, and its number.
        self._batches: tuple[int, list[tuple[str, ...]]] = (0, [])
        self._watch = FiniteWatch()
        #: Of the steps that are not known to be finite: their micro-batches before they went to the device, and their answer tokens.
        self._kept: dict[int, tuple[list[Any], Any]] = {}
        self._taken_again = False

    @property
    def _skips_by_itself(self) -> bool:
        """Whether the optimizer leaves out an update on the device's own word."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return (
            self.step.pair.student.head.weight.is_cuda
            and not self.args.fp16  # its scaler has a word of its own, and makes the host wait
            and not self._taken_again
            and self.accelerator.distributed_type in _WHOLE
            and getattr(optimizer, "_step_supports_amp_scaling", False)
        )

    # ---- looking

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, kept for as long as it is not known to be finite."""
        if self._skips_by_itself:
            now = self.state.global_step + 1
            self._kept.setdefault(now, ([], num_items_in_batch))[0].append(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def check_loss(self, sums: SummedLoss, batch: AnyBatch) -> None:
        """Stop at a loss that is not finite, now or when it is known.

        Raises:
            FloatingPointError: naming terms, samples and pathways.
        """
        now = self.state.global_step + 1
        if self._skips_by_itself:
            self._watch.note(sums.loss, now)
            self._look(wait=False)
        elif not torch.isfinite(sums.loss):
            raise FloatingPointError(self._about_loss(sums, batch, now))

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clip by the norm that is looked at: one that is not finite would spoil all gradients.

        Under fp16 the loss scaler skips such steps by design.
        """
        if self.args.fp16:
            return super()._clip_grad_norm(model)
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if self._skips_by_itself:
            self._watch.note(norm, self.state.global_step + 1)
            optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
            optimizer.found_inf = self._watch.bad
            self._look(wait=False)
        elif not torch.isfinite(norm):
            message = "the gradient is not finite; stopped before the update"
            raise FloatingPointError(f"step {self.state.global_step + 1}: {message}; {self._explain(message)}")
        if self.accelerator.distributed_type not in _WHOLE:
            return super()._clip_grad_norm(model)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control = self.control
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self._look(wait=True)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _look(self, *, wait: bool) -> None:
        """Stop if a step is known not to have been finite."""
        step = self._watch.first_bad(wait=wait)
        if step is not None:
            self._take_again(step)
        oldest = self._watch.oldest
        for known in [known for known in self._kept if oldest is None or known < oldest]:
            if known <= self.state.global_step:  # of the step that is being made, micro-batches are to come
                del self._kept[known]

    def _take_again(self, step: int) -> None:
        """Stop as if the verdict had been known at once; no update was made since, and other processes do not take part."""
        batches, count = self._kept[step]
        self._taken_again, self.state.global_step, self._batches = True, step - 1, (0, [])
        self.step.zero_grad()
        for batch in batches:
            loss: Any = self.compute_loss(self.step, self._prepare_inputs(batch), num_items_in_batch=count)
            loss.backward()
        self._clip_grad_norm(self.step)
        message = "the loss or the gradient is not finite; stopped before the update"
        raise FloatingPointError(
            f"step {step}: {message}. It is finite when this process takes the step again by itself: look at what the other processes "
            f"say, and, if there are none, at sums whose order a GPU does not keep; {self._explain(message)}"
        )

    # ---- saying

    def _about_loss(self, sums: SummedLoss, batch: AnyBatch, now: int) -> str:
        """What is said of a loss that is not finite: its terms, and the samples that it comes from."""
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in sums.terms.items())
        where, blamed = f"samples {named(batch.keys)}", {}
        if self.accelerator.num_processes == 1:  # with sharded weights, other ranks would have to take part
            blamed = self.step.not_finite(batch)
            each = "; ".join(f"{name!a} ({', '.join(pathways)})" for name, pathways in blamed.items())
            where = f"logits are not finite in {each}" if each else f"all logits are finite; {where}"
        message = f"the loss is not finite ({terms}); {where}; stopped before the update"
        return f"step {now}: {message}; {self._explain(message, sums.terms, blamed)}"

    def _explain(
        self, reason: str, terms: Mapping[str, Tensor] | None = None, pathways: Mapping[str, list[str]] | None = None
    ) -> str:
        """Write what explains a stop, and say where."""
        now = self.state.global_step + 1
        rank = f"-process-{self.args.process_index}" if self.args.world_size > 1 else ""
        file = explain(
            Path(str(self.args.output_dir)) / f"not-finite-step-{now}{rank}.json",
            reason=reason,
            step=now,
            student=self.step.pair.student,
            auxiliary=self.step.auxiliary_modules,
            batches=self._batches[1],
            terms=terms or {},
            pathways=pathways or {},
            rates=[] if self.optimizer is None else [group["lr"] for group in self.optimizer.param_groups],
        )
        return f"its samples, terms and norms are in {file}"

    def check_weights(self, state: Mapping[str, Tensor]) -> None:
        """Refuse to save weights that are not finite, which no row of the last steps may have felt."""
        frozen = ("pair.teacher.", *(f"others.{number}.teacher." for number in range(len(self.step.others))))
        learned = {name.removeprefix("pair."): tensor for name, tensor in state.items() if not name.startswith(frozen)}
        if bad := not_finite(learned):
            message = f"after step {self.state.global_step}, {describe(learned, bad)}. They are not saved: an earlier checkpoint is sound"
            raise FloatingPointError(f"{message}; {self._explain(message)}")
