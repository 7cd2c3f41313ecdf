"""Switch-KD in a training loop of one's own, without a Trainer: `python -m examples.own_loop STUDENT TEACHER DATA OUT`.

Student and teacher read the same inputs here; where they do not, `OwnInputs` takes the place of `SameInputs`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from switchkd import (
    TEACHER,
    Collator,
    DistillationStep,
    Pair,
    Reader,
    SameInputs,
    SwitchKD,
    load_pathway,
    load_rows,
)


def train(
    student: Path, teacher: Path, data: Path, out: Path, *, epochs: int = 1, batch_size: int = 4, rate: float = 1e-4
) -> Iterator[float]:
    """Train every part of the student, yield the loss of each step, and write the student to `out` after the last."""
    processor = AutoProcessor.from_pretrained(student)
    ids, method = len(processor.tokenizer), SwitchKD()
    pair = Pair(load_pathway(student), load_pathway(teacher), needs=method.needs, vocabulary=ids)
    step = DistillationStep(pair, method).train()
    collator = Collator(Reader(processor), {TEACHER: SameInputs(ids)})
    batches = DataLoader(load_rows(data), batch_size, shuffle=True, collate_fn=collator)
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=rate)
    steps = epochs * len(batches)
    for epoch in range(epochs):
        for number, batch in enumerate(batches, start=1 + epoch * len(batches)):
            sums = step(batch, progress=number / steps, step=number - 1)
            loss = sums.loss / sums.answers
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()
    pair.student.model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    for number, loss in enumerate(train(*map(Path, sys.argv[1:])), start=1):
        print(f"step {number}: loss {loss:.4f}", flush=True)
