"""Packed rows: several samples in one row say what each says alone, inside and at the end, through every family and the switch."""

from itertools import pairwise

import pytest
import torch
from packed_inputs import packed, packed_batch
from pairs import ALL, PARTS
from tiny_families import BUILDS, VOCABULARY, batch_for, inputs_for, tiny
from tiny_models import read_apart, tiny_inputs, tiny_llava
from transformers import modeling_flash_attention_utils as flash

from switchkd.batch import TEACHER
from switchkd.methods import SwitchKD
from switchkd.models import Pathway
from switchkd.models.capture import Attention, Hidden, Projected, Vision, capture, of_samples
from switchkd.models.families import family_of
from switchkd.models.packed_rows import check_packable
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.train.step import DistillationStep

PACKABLE = [name for name in BUILDS if family_of(BUILDS[name].config(16, 1)).unpackable is None]
#: Two images, one image, none; and two rows of which the second is shorter.
SIZES = [[(16, 16), (16, 32)], [(32, 16)], [], [(16, 16)], []]
PACKS = (3, 2)
SITES = frozenset({Vision(), Projected(), Hidden(0.5, "visual"), Hidden(at="text"), Hidden(at="answers"), Attention()})


def assert_equal_steps(step, batch, packs):
    """Terms, statistics and gradients of the padded and of the packed batch."""
    results = []
    for one in (batch, packed_batch(batch, packs)):
        step.zero_grad()
        sums = step(one)
        sums.loss.backward()
        gradients = {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}
        results.append({**sums.terms, **sums.statistics, **gradients})
    assert results[0].keys() == results[1].keys() > {"ce", "align", "switch"}
    for name, padded in results[0].items():
        torch.testing.assert_close(results[1][name], padded, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", PACKABLE)
def test_losses_and_gradients_are_those_of_padded_rows(name):
    student = Pathway(tiny(name, seed=2, depth=2))
    student.train_only(PARTS)
    teacher = Pathway(tiny(name, hidden=24, depth=2, seed=1))
    pair = Pair(student, teacher, needs=ALL, vocabulary=VOCABULARY)
    assert_equal_steps(DistillationStep(pair, SwitchKD()).double().train(), batch_for(name, sizes=SIZES), PACKS)


def test_over_a_bridge_each_model_reads_packed_rows_of_its_own():
    """The student's images are larger and its prompts others, so that its samples begin elsewhere than the teacher's."""
    images, packs = (1, 2, 0, 1), (1, 3)
    apart = tiny_inputs(images=images, image_size=24), tiny_inputs(images=images, seed=1)
    places = [(place, place + 1) for place in range(0, len(apart[0].targets), 2)][:-1]
    batch = read_apart(*apart, places)
    student = Pathway(tiny_llava(seed=2, width=48, image_size=24))
    student.train_only(PARTS)
    pair = Pair(student, Pathway(tiny_llava(seed=1)), needs=ALL, vocabulary=96, bridge=Bridge(48, 32))
    one = packed_batch(batch, packs)
    assert not torch.equal(one.student.offsets, one.readers[TEACHER].offsets)
    assert_equal_steps(DistillationStep(pair, SwitchKD()).double().train(), batch, packs)


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_5_vl", "smolvlm", "mistral3"])
def test_what_is_inside_belongs_to_the_same_samples(name):
    pathway, padded = Pathway(tiny(name).double()), inputs_for(name, sizes=SIZES)
    pathway.show_attention(True)
    seen = pathway.see(padded)
    found = []
    for inputs in (padded, packed(padded, PACKS)):
        with torch.no_grad(), capture(pathway, seen, inputs, SITES) as noted:
            pathway.say(seen, inputs)
        found.append(of_samples(noted, SITES))
    for site in SITES:
        assert len(found[0][site]) == len(SIZES)
        for alone, together in zip(found[0][site], found[1][site], strict=True):
            # eager attention takes its softmax in float32, whatever goes into it
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["llava-clip-llama", "qwen3_vl", "internvl-qwen3"])
def test_a_sample_does_not_notice_what_is_in_its_row(name):
    """Other words and other pictures of the first and third sample change nothing for the second, and all for themselves."""
    pathway, inputs = Pathway(tiny(name).double()), packed(inputs_for(name, sizes=SIZES[:1] * 3), (3,))
    begin, end = inputs.offsets[1].item(), inputs.offsets[2].item()
    words = inputs.tokens.clone()
    outside = torch.ones_like(words, dtype=torch.bool)
    outside[0, begin:end] = False
    words[outside & (words > 7)] += 1
    pixels = inputs.images["pixel_values"]
    third = len(pixels) // 3
    pictures = torch.cat([pixels[:third].flip(-1), pixels[third : 2 * third], pixels[2 * third :].flip(-1)])
    changed = inputs._replace(
        tokens=words.where(words < VOCABULARY, 8), media={"image": {**inputs.images, "pixel_values": pictures}}
    )
    with torch.no_grad():
        before, after = (pathway.say(pathway.see(one), one) for one in (inputs, changed))
    moved = (before - after).abs().amax(dim=1)
    assert moved[inputs.sample == 1].max() < 1e-12
    assert moved[inputs.sample != 1].min() > 1e-3


def varlen_attention(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale):
    """What flash-attn computes, sequence by sequence."""
    assert causal
    assert cu_seqlens_q is cu_seqlens_k
    assert cu_seqlens_q.dtype == torch.int32
    borders = cu_seqlens_q.tolist()
    assert borders[0] == 0
    assert borders[-1] == len(q)
    assert max(b - a for a, b in pairwise(borders)) <= max_seqlen_q == max_seqlen_k
    said = []
    for a, b in pairwise(borders):
        query, key, value = (one[a:b].transpose(0, 1) for one in (q, k, v))
        groups = len(query) // len(key)
        key, value = (one.repeat_interleave(groups, 0) for one in (key, value))
        said.append(
            torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=softmax_scale)
        )
    return torch.cat([one.transpose(0, 1) for one in said])


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "qwen2_vl", "llava_next-mistral"])
def test_flash_attention_is_told_where_samples_begin(name, monkeypatch):
    """All rows as one, through transformers' own code for flash-attn, whose kernel is written out here; it runs on GPUs alone."""
    calls = []

    def kernel(*tensors, **how):
        calls.append(tensors[0].shape[0])
        return varlen_attention(*tensors, **how)

    kernel.__signature__ = flash.inspect.signature(varlen_attention)
    process = flash._lazy_define_process_function(kernel)
    monkeypatch.setattr(
        flash,
        "lazy_import_flash_attention",
        lambda *given, **how: ((None, kernel, None, None, None), (process, process)),
    )
    pathway = Pathway(tiny(name).double())
    padded = inputs_for(name, sizes=SIZES)
    inputs = packed(padded, PACKS)
    with torch.no_grad():
        seen = pathway.see(padded)
        expected = pathway.say(seen, padded)
        pathway.part("language")[0].config._attn_implementation = "flash_attention_2"
        said = pathway.say(seen, inputs)
    assert calls == [inputs.tokens.numel()] * 3  # once in each layer
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in BUILDS if name not in PACKABLE])
def test_families_whose_tokens_see_both_ways_are_refused_by_name(name):
    config = BUILDS[name].config(16, 1)
    with pytest.raises(ValueError, match=rf"samples of {config.model_type} cannot share a row, because .* both ways"):
        check_packable(BUILDS["llava-clip-llama"].config(16, 1), config)
