"""What a method looks at inside a model, noted while the model says its answers: no second forward pass."""

from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from switchkd.models.families.family import Features
from switchkd.models.pathway import Pathway
from switchkd.types import Batch, Head, Inner, Look, text_positions


class Watch:
    """Notes what one `Pathway.say` makes on its way, as a context manager around it.

    Args:
        pathway: whose `say` runs inside.
        batch: what it reads.
        looks: what is wanted; without any, nothing is hooked and nothing kept.
    """

    def __init__(self, pathway: Pathway, batch: Batch, looks: frozenset[Look]) -> None:
        self.pathway, self.batch, self.looks = pathway, batch, looks
        self._noted: dict[str, Any] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Watch":
        """Hook the model."""
        if self.looks:
            model: nn.Module = self.pathway.model.model
            self._hooks = [
                model.register_forward_pre_hook(self._on_entering, with_kwargs=True),
                model.register_forward_hook(self._on_leaving),
            ]
        if "attention" in self.looks:
            first = self.pathway.family.first_attention(self.pathway.model)
            self._hooks.append(first.register_forward_hook(self._on_attention))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _on_entering(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._noted["projected"] = (keywords["mm_encoder_outputs"] or {}).get("image")

    def _on_leaving(self, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        self._noted["hidden"] = outputs.last_hidden_state

    def _on_attention(self, module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]) -> None:
        if outputs[1] is None:
            raise ValueError(
                f"the first layer of the {self.pathway.family.model_type} language model keeps no attention weights: only eager attention "
                "does. Use attn_implementation auto or eager"
            )
        self._noted["attention"] = outputs[1]

    def inner(self, features: Features | None, head: Head) -> Inner | None:
        """What was noted, cut into rows; None where nothing was asked for. `features` is the V(x) that `say` was given."""
        if not self.looks:
            return None
        ids, config = self.batch["input_ids"], self.pathway.model.config
        image_token = self.pathway.family.geometry(config)["image token id"]
        seen = ids == image_token
        texts = text_positions(ids, self.batch["attention_mask"], image_token)
        tokens = seen.sum(dim=1).tolist()
        hidden, rows = self._noted["hidden"], dict[Look, list[Tensor]]()
        if "features" in self.looks:
            rows["features"] = self._features(features, tokens)
        if "projected" in self.looks:
            rows["projected"] = self._projected(tokens, hidden)
        if "visual" in self.looks:
            rows["visual"] = list(hidden[seen].split(tokens))
        if "text" in self.looks:
            rows["text"] = list(hidden[texts].split(texts.sum(dim=1).tolist()))
        if "attention" in self.looks:
            rows["attention"] = [
                weights[:, queries][:, :, keys]
                for weights, queries, keys in zip(self._noted["attention"], texts, seen, strict=True)
            ]
        return Inner(rows, head)

    def _features(self, features: Features | None, tokens: list[int]) -> list[Float[Tensor, "tokens width"]]:
        family, config, projected = self.pathway.family, self.pathway.model.config, self._noted["projected"]
        if features is None or projected is None:  # no image, or a blank one that belongs to no row
            width = family.geometry(config)["feature width"]
            return [self.pathway.head.weight.new_zeros(0, width) for _ in tokens]
        pictures = family.pictures_of_rows(config, self.batch, projected, tokens)
        return family.features_of_rows(config, features, self.batch, pictures)

    def _projected(self, tokens: list[int], hidden: Tensor) -> list[Float[Tensor, "tokens width"]]:
        projected = self._noted["projected"]
        if projected is None:
            return [hidden.new_zeros(0, hidden.shape[-1]) for _ in tokens]
        return list(self.pathway.family.tokens_of(projected).split(tokens))


def texts_of_rows(pathway: Pathway, batch: Batch) -> list[Int[Tensor, " texts"]]:
    """The ids at the text positions of each row: what must agree before two models are compared there."""
    token = pathway.family.geometry(pathway.model.config)["image token id"]
    mask = text_positions(batch["input_ids"], batch["attention_mask"], token)
    return list(batch["input_ids"][mask].split(mask.sum(dim=1).tolist()))


def check_same_text(student: Pathway, teacher: Pathway, ours: Batch, theirs: Batch) -> None:
    """Raise ValueError unless both models read the same text in every row."""
    pairs = zip(texts_of_rows(student, ours), texts_of_rows(teacher, theirs), strict=True)
    for row, (mine, other) in enumerate(pairs):
        if not torch.equal(mine, other):
            raise ValueError(
                f"row {row} of a batch is {len(mine)} tokens of text for the student and {len(other)} others for the teacher, and the "
                "method compares all of them one by one: give both models one tokenizer and chat template, or choose a method that "
                "compares answers"
            )
