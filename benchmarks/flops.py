"""The floating-point operations of one Switch-KD step, from the configs of the models: the work that no implementation can leave out."""

from dataclasses import dataclass

from transformers import LlavaConfig


@dataclass(frozen=True)
class Sizes:
    """One sample: visual tokens, other tokens of the prompt, answer tokens."""

    visual: int
    prompt: int
    answer: int

    @property
    def length(self) -> int:
        return self.visual + self.prompt + self.answer


@dataclass(frozen=True)
class Forward:
    """Operations of a forward pass. A backward pass costs as much for the products with weights once through and once more if they
    learn, and 2.5 times as much for attention, whose scores are computed again.
    """

    products: float
    attention: float = 0.0

    @property
    def once(self) -> float:
        return self.products + self.attention

    @property
    def through(self) -> float:
        """The backward pass of a frozen part: gradients of activations alone."""
        return self.products + 2.5 * self.attention

    @property
    def trained(self) -> float:
        """Forward and backward pass of a part that learns."""
        return 3 * self.products + 3.5 * self.attention

    def __add__(self, other: "Forward") -> "Forward":
        return Forward(self.products + other.products, self.attention + other.attention)


def vision_flops(config: LlavaConfig, visual: int) -> Forward:
    """The encoder up to the feature layer: 2 per weight and token, 4·n²·width for the attention of a layer."""
    vision = config.vision_config
    layers = vision.num_hidden_layers + 1 + config.vision_feature_layer  # −1 is the last
    weights = layers * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    patch = 3 * vision.patch_size**2 * vision.hidden_size
    return Forward(2 * visual * (weights + patch), layers * 4 * visual**2 * vision.hidden_size)


def projector_flops(config: LlavaConfig, visual: int) -> Forward:
    """The two-layer MLP."""
    width = config.text_config.hidden_size
    return Forward(2 * visual * (config.vision_config.hidden_size * width + width**2))


def language_flops(config: LlavaConfig, length: int) -> Forward:
    """The decoder without its head; causal attention is half of n²."""
    text = config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    weights = 2 * text.hidden_size * (queries + keys) + 3 * text.hidden_size * text.intermediate_size
    layers = text.num_hidden_layers
    return Forward(layers * 2 * length * weights, layers * 2 * length**2 * queries)


def head_flops(config: LlavaConfig, answer: int) -> float:
    """Logits of the answer tokens."""
    return 2 * answer * config.text_config.hidden_size * config.text_config.vocab_size


def step_flops(student: LlavaConfig, teacher: LlavaConfig, sizes: Sizes) -> dict[str, float]:
    """Operations of one sample, by part."""
    n = sizes.length
    switch = projector_flops(teacher, sizes.visual) + language_flops(teacher, n)
    return {
        "teacher vision": (vision_flops(teacher, sizes.visual) + projector_flops(teacher, sizes.visual)).once,
        "teacher language": language_flops(teacher, n).once,
        "student vision": vision_flops(student, sizes.visual).trained,
        "student language": (projector_flops(student, sizes.visual) + language_flops(student, n)).trained,
        "switch forward": switch.once,
        "switch backward": switch.through,
        # of the teacher's head no dense backward pass: the gradient is sparse
        "heads": 3 * head_flops(student, sizes.answer) + 2 * head_flops(teacher, sizes.answer),
    }
