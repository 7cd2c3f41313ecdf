"""What pictures show, given in words: how a small language model learns to answer, and what a projector has to say.

Trained on pictures alone, a language model of this size stays nearly blind for thousands of steps (docs/log.md).
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from switchkd.console import say
from switchkd.pretraining.photo_stream import Drawn, Squares, batches, patch_labels
from switchkd.pretraining.scales import TowerPlan
from switchkd.pretraining.small_llava import END, IMAGE
from switchkd.pretraining.tower import Update, features
from switchkd.world.grid_questions import EMPTY
from switchkd.world.grids import Grid
from switchkd.world.scenes import COLUMNS, ROWS

#: Of the noise on descriptions, by their standard deviation: a projector's are blurred too.
NOISE = 0.3
_PICTURES, _FITTED, _SAID = 16, 32, 200


class Describer:
    """In the place of each visual token, the sum of the embeddings of the words for what it shows."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        classes: Sequence[str],
        side: int,
    ) -> None:
        self._words = model.model.language_model.embed_tokens
        self._classes, self._side = classes, side
        self._bags = [_bags(tokenizer, names) for names in ((EMPTY, *classes), ROWS, COLUMNS)]

    def __call__(self, grids: Sequence[Grid]) -> Float[Tensor, "images patches hidden"]:
        """One vector for each patch."""
        labels = patch_labels(grids, self._classes, self._side)
        parts = [(bags @ self._words.weight)[labels[..., place]] for place, bags in enumerate(self._bags)]
        described: Tensor = parts[0] + parts[1] + parts[2]
        return described


def _bags(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> Float[Tensor, "names vocabulary"]:
    """How often each token is in each name."""
    bags = torch.zeros(len(names), len(tokenizer))
    for place, name in enumerate(names):
        for index in tokenizer(name, add_special_tokens=False).input_ids:
            bags[place, index] += 1
    return bags


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    squares: Squares,
    plan: TowerPlan,
    *,
    steps: int,
    seed: int,
) -> None:
    """Train a language model on the answers while pictures are given in words, as language models are trained on text."""
    torch.manual_seed(seed)
    model.train()
    describe = Describer(model, tokenizer, squares.photographs.classes, plan.side)
    pack = Packer(tokenizer, plan.side**2)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    update = Update(parameters, 2e-3, steps, decay=0.05)
    right, done = 0.0, 0
    for drawn in batches(squares.asked(f"{seed} words"), _PICTURES, steps, "language model, in words"):
        described = describe([one.grid for one in drawn])
        described = described + NOISE * described.detach().std() * torch.randn_like(described)
        tokens, mask, predicts, targets = pack(drawn)
        hidden = model.model(
            input_ids=tokens,
            attention_mask=mask,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=cast(Any, list(described)))},
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[predicts])
        update(F.cross_entropy(logits, targets))
        right, done = 0.98 * right + 0.02 * (logits.argmax(-1) == targets).float().mean().item(), done + 1
        if done % _SAID == 0 or done == steps:
            say(f"language model, in words: {right / (1 - 0.98**done):.1%} of the answer tokens after {done} steps")
    model.eval()


def fit_projector(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    squares: Squares,
    plan: TowerPlan,
    *,
    steps: int,
    seed: int,
) -> None:
    """Turn each visual token into the description in words that the language model knows, by least squares."""
    torch.manual_seed(seed)
    describe = Describer(model, tokenizer, squares.photographs.classes, plan.side)
    projector = model.model.multi_modal_projector
    update = Update(list(projector.parameters()), 2e-3, steps)
    left = float("nan")
    for drawn in batches(squares.asked(f"{seed} projector"), _FITTED, steps, "projector"):
        with torch.no_grad():
            seen = features(model.model.vision_tower, drawn, plan)
            described = describe([one.grid for one in drawn])
        loss = F.mse_loss(projector(seen), described) / described.var()
        update(loss)
        left = loss.item()
    say(f"projector: unexplained variance {left:.3f}")


class Packer:
    """Conversations as the chat template of the shipped models writes them; every text is tokenized once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, visual_tokens: int) -> None:
        self._encode = cache(lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids))
        self._image, self._pad = IMAGE * visual_tokens, tokenizer.pad_token_id

    def __call__(self, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token ids and attention mask [rows, width], padded on the right; the flat places that predict answer tokens, and these."""
        encoded = [self._encoded(one) for one in drawn]
        width = max(len(tokens) for tokens, _ in encoded)
        tokens = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row, _ in encoded])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in encoded])
        answers = torch.tensor([number * width + at for number, (_, places) in enumerate(encoded) for at in places])
        return tokens, mask, answers - 1, tokens.flatten()[answers]

    def _encoded(self, drawn: Drawn) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        answers: list[int] = []
        for index, question in enumerate(drawn.questions):
            tokens += self._encode(f"<|user|>{self._image if index == 0 else ''}{question.text}<|assistant|>")
            answered = self._encode(question.answer + END)
            answers += range(len(tokens), len(tokens) + len(answered))
            tokens += answered
        return tokens, answers


def texts(squares: Squares, seed: int, pictures: int) -> Iterator[str]:
    """What is asked and answered about so many pictures, for a tokenizer; and every name of a class and place."""
    yield from squares.photographs.classes
    yield from (*ROWS, *COLUMNS, EMPTY)
    for _, one in zip(range(pictures), squares.asked(f"{seed} texts"), strict=False):
        for question in one.questions:
            yield question.text
            yield question.answer
