"""Packed rows: several samples in one row say what each says alone."""

import pytest
import torch
from pairs import ALL, PARTS
from tiny_families import BUILDS, VOCABULARY, inputs_for, tiny
from tiny_models import read_alike

from switchkd.batch import Inputs
from switchkd.models import Pathway
from switchkd.models.families import family_of
from switchkd.models.packed_rows import check_packable

from switchkd.methods import SwitchKD
from switchkd.pairing import Pair
from switchkd.train.step import DistillationStep

PACKABLE = [name for name in BUILDS if family_of(BUILDS[name].config(16, 1)).unpackable is None]
#: Two images, one image, none; and two rows of which the second is shorter.
SIZES = [[(16, 16), (16, 32)], [(32, 16)], [], [(16, 16)], []]
PACKS = (3, 2)


def packed(inputs: Inputs, packs: tuple[int, ...] = PACKS) -> Inputs:
    """The same samples in as many rows, written apart from the code that packs."""
    samples, rows, begins = list(range(len(inputs.lengths))), [], []
    for count in packs:
        rows.append([samples.pop(0) for _ in range(count)])
    lengths = inputs.lengths.tolist()
    width = max(sum(lengths[sample] for sample in row) for row in rows)
    old = inputs.tokens.shape[1]

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


def make_step(name, method=None):
    student = Pathway(tiny(name, seed=2))
    student.train_only(PARTS)
    teacher = Pathway(tiny(name, hidden=32, depth=4, seed=1))
    pair = Pair(student, teacher, needs=ALL, vocabulary=VOCABULARY)
    return DistillationStep(pair, method or SwitchKD()).double().train()


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(name):
    step, padded = make_step(name), read_alike(inputs_for(name, sizes=SIZES))
    sums, gradients = [], []
    for batch in (padded, read_alike(packed(padded.student))):
        step.zero_grad()
        sums.append(step(batch))
        sums[-1].loss.backward()
        gradients.append({key: p.grad.clone() for key, p in step.named_parameters() if p.grad is not None})
    assert set(sums[0].terms) == {"ce", "align", "switch"}
    for term, value in sums[0].terms.items():
        torch.testing.assert_close(sums[1].terms[term], value, rtol=1e-9, atol=1e-9)
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", [name for name in BUILDS if name not in PACKABLE])
def test_families_whose_tokens_see_both_ways_are_refused_by_name(name):
    config = BUILDS[name].config(16, 1)
    with pytest.raises(ValueError, match=rf"samples of {config.model_type} cannot share a row, because .* both ways"):
        check_packable(BUILDS["llava-clip-llama"].config(16, 1), config)
