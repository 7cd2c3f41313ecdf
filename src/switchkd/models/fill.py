"""A model from tensors that are at hand, every one accounted for."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping


def fill(
    architecture: type[PreTrainedModel],
    config: PretrainedConfig,
    tensors: dict[str, Tensor],
    *,
    called: Callable[[str], str] = str,
) -> PreTrainedModel:
    """A model with exactly these tensors as its weights, in their own precision; nothing is drawn at random or left over.

    Args:
        architecture: the model's class.
        config: its config.
        tensors: by the names of its state dict.
        called: what errors call a tensor, where the user knows it by another name.

    Raises:
        ValueError: if names or shapes are not exactly those of the architecture; a head that is tied to the embeddings may be absent, or
            present with equal values.
    """
    with torch.device("meta"):
        model: PreTrainedModel = architecture(config)
    tensors = dict(tensors)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for tied, other in (model.all_tied_weights_keys or {}).items():
        del expected[tied]
        if tied in tensors and other in tensors and not torch.equal(tensors.pop(tied), tensors[other]):
            raise ValueError(
                f"the config ties {called(tied)} to {called(other)}, but their values differ: set tie_word_embeddings to false in it"
            )
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        wrong = [
            f"{len(names)} {kind} ({', '.join(map(called, names[:3]))}{', …' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise ValueError(
            f"{len(tensors)} tensors where a {config.model_type} of this config has {len(expected)}: {', '.join(wrong)}. "
            "Config and weights belong to different models"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{called(name)} is {list(tensors[name].shape)} in the weights and {list(shape)} in the config"
            )
    model.load_state_dict(tensors, assign=True, strict=False)
    model.tie_weights()
    name_as_on_the_hub(model)
    model.eval()
    return model


def name_as_on_the_hub(model: PreTrainedModel) -> None:
    """Have `save_pretrained` give tensors the names of published checkpoints, whatever those of the files were that the model came from."""
    vars(model)["_weight_conversions"] = get_model_conversion_mapping(model, add_legacy=False)
