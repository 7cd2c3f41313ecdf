"""Pictures without detail, in the form that each family has them in."""

import io

import numpy as np
import oracles
import pytest
import torch
from data.test_family_batches import row
from PIL import Image
from tiny_families import BUILDS, batch_for, tiny
from tiny_processors import PROCESSORS, tiny_for

from switchkd.data.reader import Reader
from switchkd.models import Pathway
from switchkd.models.coarse import coarse
from switchkd.models.families import family_of


@pytest.mark.parametrize(("detail", "cells"), [(0.25, (2, 3)), (0.5, (4, 6)), (0.0, (1, 1)), (0.01, (1, 1))])
def test_oracle(detail, cells):
    pixels = torch.randn(2, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = coarse(pixels, detail)
    expected = [[oracles.coarse(channel.tolist(), cells) for channel in picture] for picture in pixels]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(coarse(found, detail), found, rtol=0, atol=1e-14)  # it has no detail left to lose


def test_hand_computed_where_cells_overlap():
    # Three pixels in two cells: the cells are pixels 0–1 and 1–2, and pixels 0 and 1 lie in the first.
    assert coarse(torch.tensor([[[3.0, 5.0, 9.0]]]), 0.6).tolist() == [[[4.0, 4.0, 7.0]]]


def stripes(height, width, cells):
    """A picture of `cells` colours, so large that a processor need not resize it."""
    colours = np.random.default_rng(3).integers(0, 256, (*cells, 3), dtype=np.uint8)
    pixels = colours.repeat(height // cells[0], axis=0).repeat(width // cells[1], axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava-siglip-qwen2"])
def test_a_picture_of_so_many_colours_stays_as_it_is(name):
    """Patches that were put together in another order would mix colours."""
    processor = PROCESSORS[name]()
    family = family_of(tiny_for(name, processor, seed=1).config)
    sides, enough = ((16, 16), 1 / 4) if name.startswith("llava") else ((32, 16), 1 / 8)
    reader = Reader(processor)
    read = reader.inputs([reader.encode(row("Which?", "A.", images=[stripes(*sides, (4, 2))]))])
    media = read.media["image"]
    for share, alike in ((enough, True), (0.0, False)):
        found = family.coarse(media, share)
        assert found.keys() == media.keys()
        same = torch.allclose(found["pixel_values"], media["pixel_values"], atol=1e-6)
        assert same == alike, share
        assert found["pixel_values"].mean().item() == pytest.approx(media["pixel_values"].mean().item(), abs=1e-5)


@pytest.mark.parametrize("name", BUILDS)
def test_every_family_sees_something_else_in_as_many_tokens(name):
    pathway, batch = Pathway(tiny(name, hidden=16, depth=2)), batch_for(name)
    blurred = batch.student._replace(
        media={kind: pathway.family.coarse(one, 0.1) for kind, one in batch.student.media.items()}
    )
    with torch.no_grad():
        seen = [pathway.see(inputs) for inputs in (batch.student, blurred)]
        said = [pathway.say(one, batch.student) for one in seen]
    assert seen[0].shape == seen[1].shape
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert said[0].shape == said[1].shape


def test_smaller_images_of_a_batch_keep_their_padding():
    processor = PROCESSORS["mistral3"]()
    family = family_of(tiny_for("mistral3", processor, seed=1).config)
    pixels = torch.ones(2, 3, 16, 24)
    pixels[1, :, 8:], pixels[1, :, :, 16:] = 0, 0
    media = {"pixel_values": pixels, "image_sizes": torch.tensor([[16, 24], [8, 16]])}
    assert torch.equal(family.coarse(media, 0.1)["pixel_values"], pixels)
