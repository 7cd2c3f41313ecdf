"""Padded inputs as packed ones, laid out apart from the code that packs."""

import torch

from switchkd.batch import Batch, Inputs


def packed(inputs: Inputs, packs: tuple[int, ...]) -> Inputs:
    """The same samples, so many in each row."""
    samples, rows, begins = list(range(len(inputs.lengths))), [], []
    for count in packs:
        rows.append([samples.pop(0) for _ in range(count)])
    assert not samples
    lengths, old = inputs.lengths.tolist(), inputs.tokens.shape[1]
    width = max(sum(lengths[sample] for sample in row) for row in rows)

    def joined(tensor, row):
        whole = torch.cat([tensor[sample][: lengths[sample]] for sample in row])
        return torch.cat([whole, whole.new_zeros(width - len(whole))])

    for number, row in enumerate(rows):
        begin = number * width
        for sample in row:
            begins.append(begin)
            begin += lengths[sample]
    counted = torch.arange(old).expand_as(inputs.tokens)
    return inputs._replace(
        tokens=torch.stack([joined(inputs.tokens, row) for row in rows]),
        types={name: torch.stack([joined(one, row) for row in rows]) for name, one in inputs.types.items()},
        predicts=torch.tensor(begins)[inputs.sample] + inputs.predicts % old,
        positions=torch.stack([joined(counted, row) for row in rows]),
        offsets=torch.tensor(begins),
    )


def packed_batch(batch: Batch, packs: tuple[int, ...]) -> Batch:
    """The same for every reader."""
    student = packed(batch.student, packs)
    readers = {name: student if one is batch.student else packed(one, packs) for name, one in batch.readers.items()}
    return batch._replace(student=student, readers=readers)
