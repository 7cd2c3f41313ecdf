"""The sections `teacher` and `student` of a recipe."""

from dataclasses import dataclass
from typing import Literal

from switchkd.models.quantize import Quantization
from switchkd.recipe.field_checks import at_least, require, share
from switchkd.typed_fields import check_fields

#: How attention is computed; `auto` is what transformers chooses, SDPA where the model has it.
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]


@dataclass(frozen=True)
class Teacher:
    """The frozen model that is learned from: a checkpoint directory, a run, or a name on the Hugging Face hub."""

    #: A checkpoint directory, the folder of a run (its student), or OWNER/NAME.
    path: str
    #: "auto" keeps the precision of the checkpoint.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: How attention is computed; auto is what transformers chooses, SDPA where the model has it.
    attn_implementation: Attention = "auto"
    #: Of the language model's linear layers, with bitsandbytes: the targets are then those of a slightly different teacher.
    quantization: Quantization | None = None
    #: Of a name on the hub: a commit, a tag or a branch.
    revision: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.path), "path must not be empty")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on all linear layers of the student's language model, which is frozen itself."""

    #: The rank.
    r: int = 16
    #: The adapters are scaled by alpha / r.
    alpha: int = 32
    #: Of what goes into the adapters, while they learn.
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        at_least(self, 1, "r", "alpha")
        share(self, "dropout")


@dataclass(frozen=True)
class Student:
    """The model that is trained: a checkpoint directory, a run, or a name on the Hugging Face hub."""

    #: A checkpoint directory, the folder of a run (its student), or OWNER/NAME.
    path: str
    #: Of the weights as they are loaded. Parts that learn are float32 at least; those that are frozen keep this. `train.bf16` computes in
    #: bfloat16 whatever this is.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    #: How attention is computed; auto is what transformers chooses, SDPA where the model has it.
    attn_implementation: Attention = "auto"
    #: Adapters instead of all weights of the language model; `lora: true` takes their defaults.
    lora: LoRA | None = None
    #: QLoRA: the language model's frozen linear layers in 4 bits, with bitsandbytes.
    quantization: Literal["4bit"] | None = None
    #: What no stage trains: parts (vision, projector, language), or modules and parameters by their dotted names, with * for any text.
    freeze: tuple[str, ...] = ()
    #: Of a name on the hub: a commit, a tag or a branch.
    revision: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.path), "path must not be empty")
        require(
            self.quantization is None or self.lora is not None,
            "quantization 4bit makes weights that cannot be trained: add `lora`, whose adapters are",
        )
