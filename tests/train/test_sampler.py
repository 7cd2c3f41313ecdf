"""Batches by length: every row once, little padding, and one order for all ranks and resumed runs."""

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SeedableRandomSampler
from datasets import Dataset
from steps import collate, make_trainer, read_metrics, rows
from torch.utils.data import BatchSampler

from switchkd.train import checkpoint
from switchkd.train.sampler import FilledUp, FillersLast, LengthGroupedSampler


def lengths_of(count=1000):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(count, generator=generator).mul(0.5).add(4).exp().long() + 1).tolist()


def padding(lengths, order, batch_size):
    batches = [[lengths[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / padded


@pytest.mark.parametrize("count", [1, 3, 8, 1000, 1003])
def test_every_row_comes_once_and_a_short_batch_last(count):
    lengths = lengths_of(count)
    order = list(LengthGroupedSampler(lengths, 8, seed=1, epoch=lambda: 0))
    assert sorted(order) == list(range(count))
    whole = order[: count // 8 * 8]
    for start in range(0, len(whole), 8):  # each batch is sorted: none straddles two
        batch = [lengths[i] for i in order[start : start + 8]]
        assert batch == sorted(batch, reverse=True)


def test_little_is_padding():
    lengths = lengths_of()
    order = list(LengthGroupedSampler(lengths, 8, seed=1, epoch=lambda: 0))
    at_random = torch.randperm(1000, generator=torch.Generator().manual_seed(1)).tolist()
    assert padding(lengths, at_random, 8) > 0.4
    assert padding(lengths, order, 8) < 0.1
    assert padding(lengths, order, 4) < 0.06  # two ranks, each with half of the batch
    assert lengths[order[0]] == max(lengths)


def test_lengths_do_not_run_from_long_to_short():
    lengths = lengths_of()
    order = list(LengthGroupedSampler(lengths, 8, seed=1, epoch=lambda: 0))[8:]
    firsts = torch.tensor([lengths[i] for i in order[::8]], dtype=torch.float)
    follows = torch.corrcoef(torch.stack([firsts[:-1], firsts[1:]]))[0, 1]
    assert follows.abs() < 0.25


def test_the_order_depends_on_seed_and_epoch_alone():
    epoch = 0
    sampler = LengthGroupedSampler(lengths_of(), 8, seed=1, epoch=lambda: epoch)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    epoch = 1
    assert list(sampler) != first
    epoch = 0
    assert list(sampler) == first
    assert list(LengthGroupedSampler(lengths_of(), 8, seed=2, epoch=lambda: 0)) != first


def answers_of_the_last(row, length):
    """The places of the answers in the last `length` tokens of a row."""
    cut = max(len(row["ids"]) - length, 0)
    return [place - cut for place in row["answers"] if place > cut]


@pytest.mark.long
def test_a_run_resumed_in_its_second_epoch_sees_the_rows_of_the_uninterrupted_one(tmp_path):
    seen = []

    def collate_and_note(samples):
        seen.append([len(sample["ids"]) for sample in samples])
        return collate([{**sample, "pixels": None} for sample in samples])

    made = [(row, 6 + number % 5) for number, row in enumerate(rows(24))]
    data = Dataset.from_list(
        [
            {"id": row["id"], "ids": row["ids"][-length:], "answers": answers_of_the_last(row, length)}
            for row, length in made
        ]
    )
    data = data.add_column("length", [len(row["ids"]) for row in data])
    saving = {"save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "group_by_length"}

    def trainer(folder):
        made = make_trainer(tmp_path / folder, batch_size=4, steps=12, data=data, **saving)
        made.data_collator = collate_and_note
        return made

    trainer("whole").train()
    whole, losses = list(seen), [line["loss"] for line in read_metrics(tmp_path / "whole")]
    assert len(whole) == 12
    assert len({tuple(batch) for batch in whole}) > 6  # epochs differ
    for step in (11, 12, 10):
        (tmp_path / "whole" / f"checkpoint-{step}").rename(tmp_path / f"gone-{step}")
    seen.clear()
    again = trainer("whole")
    torch.manual_seed(5)
    again.train(resume_from_checkpoint=str(checkpoint.latest(tmp_path / "whole")))
    assert seen == whole[9:]
    assert [line["loss"] for line in read_metrics(tmp_path / "whole")] == losses


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_ranks_that_skip_batches_go_on_in_the_rows_of_their_epoch(epoch):
    """As a resumed run does: the loader is wrapped by accelerate, and what it is told does not reach our sampler."""
    filled = FilledUp(list(range(11)), 4)

    def of_rank(rank, skipped):
        order = FillersLast(SeedableRandomSampler(filled.rows, data_seed=3), filled, epoch=lambda: epoch)
        batches = BatchSamplerShard(BatchSampler(order, 2, drop_last=False), num_processes=2, process_index=rank)
        loader = DataLoaderShard(list(range(12)), batch_sampler=batches)
        loader = skip_first_batches(loader, skipped) if skipped else loader
        loader.set_epoch(epoch)
        return [batch.tolist() for batch in loader]

    for rank in (0, 1):
        whole = of_rank(rank, 0)
        assert len(whole) == 3
        assert of_rank(rank, 1) == whole[1:]
    rows = [row for rank in (0, 1) for batch in of_rank(rank, 0) for row in batch]
    assert sorted(rows) == list(range(12))
    other = FillersLast(SeedableRandomSampler(filled.rows, data_seed=3), filled, epoch=lambda: epoch + 1)
    this = FillersLast(SeedableRandomSampler(filled.rows, data_seed=3), filled, epoch=lambda: epoch)
    assert list(other) != list(this)
    assert list(this) == list(this)
