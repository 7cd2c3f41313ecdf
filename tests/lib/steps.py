"""A few training steps on tiny models, in this process or on several ranks: `torchrun … steps.py OUT BATCH ACCUMULATION [METHOD]`.

METHOD `uneven`: see `UNEVEN`; `held_out`: seven rows are looked at after every step."""

import json
import sys
from pathlib import Path

import torch
from tiny_models import IMAGE_TOKEN, VOCABULARY, make_inputs, read_alike, tiny_llava
from transformers import ProcessorMixin, TrainingArguments

from switchkd.batch import Batch
from switchkd.methods import METHODS, Method, SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.train.held_out import HeldOut
from switchkd.train.run import MetricsFile
from switchkd.train.step import DistillationStep
from switchkd.train.trainer import DistillationTrainer

#: Two epochs of rows that do not fill the last step, of which few have an image, and an optimizer with a memory.
UNEVEN = {"steps": -1, "num_train_epochs": 2.0, "optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-3}


def uneven_rows() -> list[dict]:
    """Ten rows; only the first one has an image."""
    made = rows(36)
    return [made[0], *(row for row in made if row["pixels"] is None)]


def rows(count: int = 16) -> list[dict]:
    """Rows with answers of very different lengths, so that a mean of means is not the mean; one in four has no image."""
    generator = torch.Generator().manual_seed(3)

    def words(n: int) -> list[int]:
        return torch.randint(6, VOCABULARY, (n,), generator=generator).tolist()

    made = []
    for index in range(count):
        image = index % 4 != 3
        prompt = [IMAGE_TOKEN] * (4 if image else 0) + words(3)
        answer = words(1 + (index * 5) % 11)
        pixels = torch.randn(1, 3, 16, 16, generator=generator) if image else None
        places = list(range(len(prompt), len(prompt) + len(answer)))
        made.append({"id": f"row-{index}", "ids": prompt + answer, "answers": places, "pixels": pixels})
    return made


def collate(samples: list[dict]) -> Batch:
    """Read alike by student and teacher."""
    pixels = [s["pixels"] for s in samples if s["pixels"] is not None]
    images = {"pixel_values": torch.cat(pixels)} if pixels else None
    inputs = make_inputs([(s["ids"], s["answers"]) for s in samples], images)
    return read_alike(inputs)._replace(keys=tuple(f"{s['id']}@0" for s in samples))


class NoProcessor(ProcessorMixin):
    """Saves nothing: these models have no tokenizer."""

    def __init__(self) -> None:
        pass

    def save_pretrained(self, directory, **kwargs) -> None:
        (Path(directory) / "processor_config.json").write_text("{}")


def make_trainer(
    output: Path,
    *,
    batch_size=4,
    accumulation=1,
    steps=3,
    method: Method | None = None,
    student=None,
    data=None,
    loss="fused",
    held_out=None,
    **arguments,
):
    """A trainer on tiny models in float64, so that equal means equal."""
    method = method or SwitchKD(window=32)
    learner = student or Pathway(tiny_llava(seed=2).double())
    if student is None:
        learner.train_only(("vision", "projector", "language"))
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    learned = method.learned(learner.sizes, teacher.sizes)
    if learned is not None:
        learned.double()
    pair = Pair(learner, teacher, needs=method.needs, vocabulary=teacher.head.rows, learned=learned)
    settings = {
        "output_dir": str(output),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": 1e-2,
        "max_grad_norm": 1e3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "optim": "sgd",
        "use_cpu": True,
        "seed": 0,
    }
    return DistillationTrainer(
        DistillationStep(pair, method, loss=loss),
        TrainingArguments(**{**settings, **arguments}),
        processor=NoProcessor(),
        card="# tiny\n",
        train_dataset=data or rows(),
        held_out=held_out,
        data_collator=collate,
        callbacks=[MetricsFile(output / "metrics.jsonl")],
    )


def train(output: Path, batch_size: int, accumulation: int, name: str | None = None) -> None:
    """Train with the method of that name, and leave metrics and weights of the student and of what is learned beside it in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    method = METHODS[name]() if name in METHODS else None
    settings = UNEVEN | {"data": uneven_rows()} if name == "uneven" else {}
    if name == "held_out":
        settings = {"held_out": HeldOut(rows(7), ()), "eval_strategy": "steps", "eval_steps": 1}
        settings["per_device_eval_batch_size"] = batch_size
    trainer = make_trainer(output, batch_size=batch_size, accumulation=accumulation, method=method, **settings)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.pair.student.state_dict(), output / "student.pt")
        torch.save(trainer.pair.learned and trainer.pair.learned.state_dict(), output / "learned.pt")


def read_metrics(output: Path) -> list[dict]:
    """The logged lines of the steps."""
    return [line for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines()) if "loss" in line]


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
    if torch.distributed.is_initialized():  # or a rank can abort while the other still talks to it
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
