"""A thin `transformers.Trainer`: the loss, the log, and what a checkpoint holds. Everything else is the Trainer's own."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Sampler
from transformers import ProcessorMixin, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from switchkd.agree import over_hosts
from switchkd.batch import AnyBatch, named, tokens_read
from switchkd.files import cannot_write
from switchkd.losses import SummedLoss
from switchkd.losses.checks import NotFiniteError
from switchkd.train import checkpoint
from switchkd.train.evaluating_trainer import EvaluatingTrainer, left_on_host
from switchkd.train.parts import set_rates
from switchkd.train.sampler import FilledUp, FillersLast, LengthGroupedSampler, WithoutFillers
from switchkd.train.sharding import cut_by_layers, gathered
from switchkd.train.speed import Speed
from switchkd.train.step import DistillationStep
from switchkd.train.stream_loader import StreamLoader
from switchkd.train.student_answers import StudentAnswers, Unjoined
from switchkd.train.term_sums import TermSums, add_terms, means, of_all

#: In a checkpoint, what has been summed up for the log.
LOG = "log.json"
#: A full disk has another name in each of the libraries.
_OF_DISKS = (OSError, RuntimeError, SafetensorError)
_log = logging.getLogger(__name__)


class DistillationTrainer(EvaluatingTrainer):
    """Trains the student of a `DistillationStep`.

    The loss is the sum of the method's terms over all answer tokens of the global batch (every rank, every accumulation step), divided
    once by their number. So batch 4 × 1, 1 × 4 accumulation and 2 processes × 2 are the same step.

    Args:
        step: student, frozen teacher and method.
        args: the Trainer's arguments.
        rates: part → learning rate, of the parts that have one of their own.
        processor: saved with every checkpoint.
        card: the text of the model card of every checkpoint.
        files: name → text of what else is kept in every checkpoint.
        answering: has the student answer a share of the rows anew; then the data collator is its own.
        kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        step: DistillationStep,
        args: TrainingArguments,
        *,
        rates: Mapping[str, float] | None = None,
        processor: ProcessorMixin,
        card: str,
        files: Mapping[str, str] | None = None,
        answering: StudentAnswers | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["callbacks"] = [*kwargs.pop("callbacks", []), _GoOnLogging(self)]
        self._rows = kwargs["train_dataset"]
        self.answering = answering
        if answering is not None:
            kwargs["data_collator"] = Unjoined(answering.collator)
        if args.world_size > 1 and not isinstance(self._rows, StreamLoader):
            kwargs["train_dataset"] = FilledUp(self._rows, args.per_device_train_batch_size * args.world_size)
            kwargs["data_collator"] = WithoutFillers(kwargs["data_collator"])
        super().__init__(model=step, args=args, **kwargs)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        cut_by_layers(plugin, step, bf16=self.accelerator.mixed_precision == "bf16")
        self.step = step
        self.pair = step.pair
        self.rates = rates or {}
        self.processor = processor
        self.card = card
        self.files = files or {}
        self._staging: str | None = None
        #: The step whose checkpoint was written last.
        self._saved = 0
        self._resumed_from: Path | None = None
        self._sums: TermSums = {}
        #: The step from which on the losses of `train_loss` are known.
        self._summed_from = 0
        self._told = False
        #: Whether a sample of the global batch has an image.
        self._has_images = True
        #: The names of the method's terms, so far.
        self.terms: list[str] = []
        self.speed = Speed(args.world_size)
        self._drawn_at = time.perf_counter()

    # ---- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: AnyBatch,  # type: ignore[override]
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of all terms on this rank's micro-batch over the answer tokens of the global batch."""
        now = self.state.global_step + 1
        if not num_items_in_batch:
            raise ValueError(f"step {now}: the global batch has no answer token, so there is nothing to learn from")
        if self._batches[0] != now:
            self._batches = (now, [])
        self._batches[1].append(inputs.keys)
        try:
            sums: SummedLoss = model(inputs, *self._place, dropped_mass=now % self.args.logging_steps == 0)
        except (ValueError, IndexError, RuntimeError) as error:
            where = f"; {self._explain(str(error))}" if isinstance(error, NotFiniteError) else ""
            error.args = (f"step {now}, samples {named(inputs.keys)}: {error}{where}",)
            raise
        self.check_loss(sums, inputs)
        self._record(sums, own_inputs=inputs.own_inputs and "teacher" in self._needs)
        # DDP averages gradients over ranks; the division here is already global
        loss = sums.loss / num_items_in_batch * self.accelerator.num_processes
        if not loss.requires_grad:  # only what looks at images learns, and no sample here has one
            loss.requires_grad_()
        return (loss, sums) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[AnyBatch], device: torch.device) -> Tensor | int:
        """The answer tokens of the global batch: of all ranks and all accumulation steps."""
        parts = (part.student for batch in batch_samples for part in batch.parts.values())
        learned = [inputs for inputs in parts if len(inputs.targets)]
        count = sum(len(inputs.targets) for inputs in learned)
        images = sum(bool(inputs.media) for inputs in learned)
        lengths = [length for inputs in learned for length in inputs.lengths.tolist()]  # still on the CPU
        counts: list[int] = [count, images, sum(lengths), len(lengths)]
        if self.accelerator.num_processes > 1:
            counts = over_hosts(counts, "sum")
        count, images, read, samples = counts
        self._has_images = images > 0
        self.speed.count(read, samples, self._needs)
        return count

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The Trainer's own, of batches in which the student has answered its share of the rows."""
        answering = self.answering
        if answering is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        with self.accelerator.autocast():
            joined = (answering.join(drawn, self.state.global_step + 1) for drawn in epoch_iterator)
            batches = super().get_batch_samples(joined, num_batches, device)
        shares, seconds = answering.taken()
        begun, self._drawn_at = self._drawn_at, time.perf_counter()
        shares["on_policy_time"] = seconds, self._drawn_at - begun
        for name, both in shares.items():
            self._sums[name] = self._sums.get(name, 0) + torch.tensor(both, dtype=torch.float64, device=device)
        return batches

    def training_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward; the operations of the first one of each kind are counted.

        Where no sample of the global batch has an image, ranks still ran a blank one (models/pathway.py) and the vision encoder has a
        gradient of zero: taken away, or momentum and weight decay would move what a single process leaves alone.
        """
        known = self.speed.knows_operations(self._needs)
        with nullcontext() if known else self.speed.operations(tokens_read(inputs), self._needs):
            loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients and not self._has_images:
            for parameter in self.step.visual_parameters():
                parameter.grad = None
        return loss

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[None]:
        """Autocast of the recipe where accelerate puts none around the step: FSDP2."""
        return self.accelerator.autocast() if self.accelerator.is_fsdp2 else nullcontext()

    def _prepare_inputs(self, inputs: AnyBatch) -> AnyBatch:  # type: ignore[override]
        return inputs.to(self.args.device, non_blocking=True)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers' estimate is for one model that reads `input_ids`."""
        return 0

    # ---- optimizer

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's own optimizer, with the parts' learning rates."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.rates:
            set_rates(optimizer, self.pair.student, self.rates)
        return optimizer

    # ---- log

    def _record(self, sums: SummedLoss, *, own_inputs: bool) -> None:
        """Terms per answer token, statistics per token that is compared; with inputs of its own, a teacher has a share of them."""
        if not self._told and self.is_world_process_zero():
            _log.info(
                "%s loss: logits of %d answer tokens at a time, of %d in the first batch",
                self.step.loss,
                sums.chunk,
                sums.answers,
            )
        self._told = True
        self.terms += [name for name in sums.terms if name not in self.terms]
        add_terms(self._sums, sums, own_inputs=own_inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to each log line every term and statistic as its mean over the answer tokens since the last line, in nats.

        `dropped_mass` is a mean too, but over the tokens of the logged step alone: it costs a product with the teacher's whole head.
        """
        if "loss" in logs and self._sums:
            logs |= means(self._sums, self.accelerator)
            self._sums = {}
        if "train_loss" in logs:  # the Trainer's is that of the steps since the last start
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step - self._summed_from, 1)
        if (
            "learning_rate" in logs and self.rates
        ):  # what is in it is the first group's in this step; the groups have the next step's
            assert self.optimizer is not None
            share = logs["learning_rate"] / self.optimizer.param_groups[0]["initial_lr"]
            logs["learning_rate"] = self.args.learning_rate * share
            logs |= {f"learning_rate_{part}": rate * share for part, rate in self.rates.items()}
        super().log(logs, start_time)

    def _summed_up(self) -> dict[str, Any]:
        """What has been summed up for the log, over all processes: every one of them must call this."""
        mean = self.accelerator.reduce(self._tr_loss.clone(), reduction="mean").item()
        terms = {name: sums.tolist() for name, sums in of_all(self._sums, self.accelerator).items()}
        return {
            "last_step": self._globalstep_last_logged,
            "total": self._total_loss_scalar,
            "loss": mean,
            "terms": terms,
        }

    def go_on_logging(self) -> None:
        """Take up the sums where the checkpoint that is resumed from left them, so that a line means what it would have meant."""
        if self._resumed_from is None:
            return
        file, self._resumed_from = self._resumed_from / LOG, None
        if not file.is_file():  # a checkpoint of an older version, which --accept-changes goes on from
            _log.warning("%s is missing: train_loss is the mean over the steps from here on", file)
            self._summed_from = self.state.global_step
            return
        saved = json.loads(file.read_text(encoding="utf-8"))
        self._globalstep_last_logged, self._total_loss_scalar = saved["last_step"], saved["total"]
        self._tr_loss += saved["loss"]
        share = float(self.is_world_process_zero())  # what all had summed up must be counted once
        self._sums = {
            name: share * torch.tensor(sums, dtype=torch.float64, device=self.args.device)
            for name, sums in saved["terms"].items()
        }

    # ---- rows

    def get_train_dataloader(self) -> Any:
        """The Trainer's own (see `left_on_host`), or a stream's."""
        if isinstance(self._rows, StreamLoader):
            return self._rows
        return left_on_host(super().get_train_dataloader())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        rows, sampler = self._rows, None
        if self.args.train_sampling_strategy == "group_by_length":
            sampler = LengthGroupedSampler(
                rows["length"],  # the index has it
                self.args.per_device_train_batch_size * self.args.world_size,
                seed=self.args.seed,
                epoch=self._epoch,
            )
        if not isinstance(self.train_dataset, FilledUp):
            return sampler or super()._get_train_sampler(train_dataset)
        # that of a single process, which accelerate does not see behind another
        shuffled = sampler or SeedableRandomSampler(rows, data_seed=self.args.seed)
        return FillersLast(shuffled, self.train_dataset, epoch=self._epoch)

    def _epoch(self) -> int:
        return int(self.state.epoch or 0)

    # ---- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the student; of sharded weights, the Trainer's own way would gather the teacher's too."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=gathered(self.step))
        else:
            super().save_model(output_dir, _internal_call=_internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # the Trainer's own way writes the whole pair once more
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            self.check_weights(self.step.state_dict() if state_dict is None else state_dict)
            directory = output_dir or self._run
            checkpoint.save_student(self.pair.student, self.processor, self.card, directory, state_dict)
            state_dict = state_dict if self.is_fsdp_enabled else None  # elsewhere these are whole
            checkpoint.save_auxiliary(self.step.auxiliary_modules, directory, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        with checkpoint.loading(resume_from_checkpoint):
            checkpoint.load(self.step, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            with checkpoint.loading(checkpoint_folder):
                super()._load_optimizer_and_scheduler(checkpoint_folder)
            self._resumed_from = Path(checkpoint_folder)

    def _load_scaler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            with checkpoint.loading(checkpoint_folder):
                super()._load_scaler(checkpoint_folder)

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            with checkpoint.loading(checkpoint_folder):
                super()._load_rng_state(checkpoint_folder)

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write into a staging folder, and rename it when it is complete."""
        run, step = self._run, self.state.global_step
        if step == self._saved:  # the end of an epoch, where it was saved for being the best
            return
        try:
            self._stage_checkpoint(model, trial)
            if self.args.should_save:
                checkpoint.publish(run, step)
        except _OF_DISKS as error:
            shutil.rmtree(checkpoint.staging(run), ignore_errors=True)
            reason = str(error).strip().split("\n")[0]
            raise OSError(cannot_write(Path(run) / f"checkpoint-{step}", reason)) from error
        if self.args.should_save:
            checkpoint.point_to_best(run, self.best)
            checkpoint.rotate(run, step, self.args.save_total_limit, best=self.best)
        self._saved = step
        self.accelerator.wait_for_everyone()

    def _stage_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Everything that a checkpoint holds, in the staging folder."""
        run, limit = self._run, self.args.save_total_limit
        if self.args.should_save:
            checkpoint.clear_staging(run)
        self.accelerator.wait_for_everyone()
        self._staging, self.args.save_total_limit = checkpoint.staging(run), None
        # nobody takes a further step from the last one: its optimizer, schedule and random generators are not kept
        self.args.save_only_model = self.state.global_step >= self.state.max_steps
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.save_total_limit, self.args.save_only_model = None, limit, False
        log = json.dumps(self._summed_up())
        staged = Path(checkpoint.staging(run)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            for name, text in {LOG: log, **self.files}.items():
                (staged / name).write_text(text, encoding="utf-8")
            if self.best is not None:  # the Trainer takes it to be in the staging folder
                self.state.best_model_checkpoint = str(self.best)
                self.state.save_to_json(str(staged / checkpoint.STATE))
        if isinstance(self._rows, StreamLoader):  # each rank has a place of its own
            (staged / self._rows.file_name()).write_text(self._rows.state(), encoding="utf-8")
        self.accelerator.wait_for_everyone()


class _GoOnLogging(TrainerCallback):
    """Has a resumed trainer take up its sums: the Trainer sets them to zero just before training begins."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The sums are there from the first step on."""
        self.trainer.go_on_logging()
        self.trainer.go_on_with_best()
