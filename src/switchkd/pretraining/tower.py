"""A vision encoder that learns what is in each cell of pictures of photographs, and has no words for it yet."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel, get_cosine_schedule_with_warmup

from switchkd.console import say
from switchkd.pretraining.photo_stream import Drawn, Squares, as_pixels, batches, patch_labels
from switchkd.pretraining.scales import TowerPlan
from switchkd.world.scenes import COLUMNS, ROWS

#: Share of the steps in which a learning rate rises.
WARMUP = 0.05


def tower_config(plan: TowerPlan) -> SiglipVisionConfig:
    """Give a SigLIP-style encoder without the pooling head that LLaVA never calls."""
    return SiglipVisionConfig(
        hidden_size=plan.width,
        intermediate_size=plan.mlp,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        image_size=plan.image_size,
        patch_size=plan.patch,
        vision_use_head=False,
    )


def train_tower(plan: TowerPlan, squares: Squares, *, seed: int) -> SiglipVisionModel:
    """Train an encoder on the labels of every patch: class, row and column of its cell.

    Row and column too: one that was not asked where things are forgets it, and mixes up neighbouring cells.
    """
    torch.manual_seed(seed)
    classes = squares.photographs.classes
    sizes = [len(classes) + 1, len(ROWS), len(COLUMNS)]
    tower = SiglipVisionModel(tower_config(plan))
    module: nn.Module = tower  # whose types of `to` and `cpu` transformers hides
    module.to(device())
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.copy_(waves(plan.side, plan.width))
    heads = nn.Linear(plan.width, sum(sizes)).to(device())
    update = Update([*tower.parameters(), *heads.parameters()], plan.learning_rate, plan.steps, decay=0.05)
    right = 0.0
    for step, drawn in enumerate(batches(squares.crowded(seed), plan.batch, plan.steps, "vision encoder"), start=1):
        labels = patch_labels([one.grid for one in drawn], classes, plan.side).to(device())
        with in_bfloat16():
            logits = heads(features(tower, drawn, plan)).float().split(sizes, dim=-1)
        losses = [F.cross_entropy(each.flatten(0, 1), labels[..., i].flatten()) for i, each in enumerate(logits)]
        update(torch.stack(losses).sum())
        shown = labels[..., 0] > 0
        if step > 0.9 * plan.steps:
            right += (logits[0].argmax(-1) == labels[..., 0])[shown].float().mean().item()
    say(
        f"vision encoder: the class of {right / max(1, plan.steps - int(0.9 * plan.steps)):.1%} of the patches, in training"
    )
    module.cpu().eval()
    return tower


def features(tower: SiglipVisionModel, drawn: list[Drawn], plan: TowerPlan) -> Float[Tensor, "images patches width"]:
    """What a LLaVA takes from the encoder: the last layer's output, before the norm behind it."""
    pixels = as_pixels(drawn, plan.image_size).to(tower.device)
    last: Tensor = tower(pixels, output_hidden_states=True).hidden_states[-1]
    return last


def waves(side: int, width: int) -> Float[Tensor, "patches width"]:
    """Positions on a grid as sines and cosines of row and column (MoCo v3, after Vaswani et al. 2017), to begin with."""
    frequencies = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = one[:, None].expand(side, side, -1)
    columns = one[None].expand(side, side, -1)
    return 0.5 * torch.cat([rows, columns], dim=-1).flatten(0, 1)


@dataclass
class Update:
    """AdamW over a half cosine, with gradients cut to a length of 1."""

    parameters: list[nn.Parameter]
    learning_rate: float
    steps: int
    decay: float = 0.0

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.AdamW(
            self.parameters, lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=self.decay
        )
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, int(WARMUP * self.steps), self.steps)

    def __call__(self, loss: Tensor) -> None:
        """One step.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} while the models of the world learn: lower the learning rate"
            )
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()


def device() -> str:
    """Where models learn."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_bfloat16() -> AbstractContextManager[object]:
    """Compute in bfloat16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device() == "cuda" else nullcontext()
