import numpy as np
import pytest
import torch
from PIL import Image

from switchkd.chat.overlay import COLOURS, GAP, SIDE, most, overlay, relative
from switchkd.chat.panel import AttentionMap


def attention_map(attention, size=(32, 32)):
    return AttentionMap(Image.new("RGB", size, (0, 200, 0)), torch.tensor(attention))


def test_a_spot_gets_its_colour_over_the_grey_of_the_picture():
    drawn = overlay([attention_map([[0.4, 0.0], [0.0, 0.0]])], 4.0)
    grey = attention_map([[1.0]]).picture.convert("L").getpixel((0, 0))
    assert drawn.size == (SIDE, SIDE)
    brightest = [round(0.25 * grey + 0.75 * channel) for channel in COLOURS[-1]]
    none = [round(0.65 * grey + 0.35 * channel) for channel in COLOURS[0]]
    assert list(drawn.getpixel((0, 0))) == pytest.approx(brightest, abs=1)
    assert list(drawn.getpixel((SIDE - 1, SIDE - 1))) == pytest.approx(none, abs=1)


def test_one_scale_for_all_pictures():
    even, spot = attention_map([[0.2, 0.2], [0.2, 0.2]]), attention_map([[0.03, 0.01], [0.0, 0.0]])
    assert most([even]) == pytest.approx(1)
    assert most([spot]) == pytest.approx(3)
    # the middle of the colours where attention is even and the most is twice that, whatever its share
    drawn, fainter = overlay([even], 2.0), overlay([attention_map([[0.02, 0.02], [0.02, 0.02]])], 2.0)
    assert np.array_equal(np.asarray(drawn), np.asarray(fainter))
    grey = even.picture.convert("L").getpixel((0, 0))
    middle = [round(0.45 * grey + 0.55 * channel) for channel in COLOURS[2]]
    assert list(drawn.getpixel((SIDE // 2, SIDE // 2))) == pytest.approx(middle, abs=1)


def test_rows_go_down_and_the_shape_stays_that_of_the_picture():
    drawn = np.asarray(overlay([attention_map([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], size=(64, 32))], 6.0))
    assert drawn.shape == (SIDE // 2, SIDE, 3)
    yellow = drawn[..., 0].astype(int) - drawn[..., 2]
    assert np.unravel_index(yellow.argmax(), yellow.shape) >= (SIDE // 4, SIDE // 2)


def test_several_pictures_lie_side_by_side_on_one_scale():
    maps = [attention_map([[0.3, 0.1]]), attention_map([[0.0, 0.0]], size=(32, 16))]
    assert [multiples.tolist() for multiples in relative(maps)] == [[pytest.approx([3, 1])], [[0, 0]]]
    assert most(maps) == pytest.approx(3)
    drawn = overlay(maps, 3.0)
    assert drawn.size == (2 * SIDE + GAP, SIDE)
    assert drawn.getpixel((SIDE + GAP, SIDE - 1)) == (0, 0, 0)  # below the second
