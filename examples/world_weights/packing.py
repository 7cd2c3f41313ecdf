"""Scenes as training tensors, fast: what the processor's chat template gives for the same conversation (a test says so)."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from examples.world_weights.models import ASSISTANT, END, IMAGE, PATCH, USER, VISUAL_TOKENS
from switchkd.batch import Inputs
from switchkd.world.draw import IMAGE_SIZE
from switchkd.world.question_kinds import Question
from switchkd.world.scenes import COLOURS, DIGITS, GRID, SHAPES, SIZES, Scene

Sample = tuple[Scene, list[Question], np.ndarray]
_FORMS = SHAPES + DIGITS


class Packer:
    """Turns samples into batches with one tokenizer; every text is tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        self._pad = tokenizer.pad_token_id

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """All questions of each picture behind it, padded on the right."""
        encoded = [self._encoded(questions) for _, questions, _ in samples]
        width = max(len(tokens) for tokens, _ in encoded)
        places = [(number, column) for number, (_, answers) in enumerate(encoded) for column in answers]
        return Inputs(
            tokens=torch.tensor([tokens + [self._pad] * (width - len(tokens)) for tokens, _ in encoded]),
            lengths=torch.tensor([len(tokens) for tokens, _ in encoded]),
            predicts=torch.tensor([number * width + column - 1 for number, column in places]),
            targets=torch.tensor([encoded[number][0][column] for number, column in places]),
            sample=torch.tensor([number for number, _ in places]),
            media={"image": {"pixel_values": pixels([picture for _, _, picture in samples])}},
            types={},
        )

    def _encoded(self, questions: list[Question]) -> tuple[list[int], list[int]]:
        """The tokens, and where among them the answers are."""
        tokens: list[int] = []
        answers: list[int] = []
        for index, question in enumerate(questions):
            image = IMAGE * VISUAL_TOKENS if index == 0 else ""
            tokens += self._encode(USER + image + question.text + ASSISTANT)
            answered = self._encode(question.answer + END)
            answers += range(len(tokens), len(tokens) + len(answered))
            tokens += answered
        return tokens, answers


def pixels(pictures: Sequence[np.ndarray]) -> Float[Tensor, "images channels height width"]:
    """Scale uint8 pictures to −1..1, channels first."""
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def cell_labels(scenes: Sequence[Scene]) -> Int[Tensor, "images rows columns 5"]:
    """Form, colour and size of the thing in each cell, from 1 (0: empty cell); row and column of the cell, from 0."""
    labels = torch.zeros((len(scenes), GRID, GRID, 5), dtype=torch.long)
    labels[..., 3] = torch.arange(GRID)[:, None]
    labels[..., 4] = torch.arange(GRID)
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            values = (_FORMS.index(thing.form), COLOURS.index(thing.colour), SIZES.index(thing.size))
            labels[index, thing.row, thing.column, :3] = torch.tensor(values) + 1
    return labels


def patch_labels(scenes: Sequence[Scene], side: int = IMAGE_SIZE // PATCH) -> Int[Tensor, "images patches 5"]:
    """The same for each of `side` × `side` patches: those of the cell that it lies in."""
    patches = side // GRID
    return cell_labels(scenes).repeat_interleave(patches, 1).repeat_interleave(patches, 2).flatten(1, 2)


def batches(stream: Iterator[Sample], size: int, steps: int) -> Iterator[list[Sample]]:
    """Yield `steps` lists of `size` fresh samples."""
    for _ in range(steps):
        yield [next(stream) for _ in range(size)]
