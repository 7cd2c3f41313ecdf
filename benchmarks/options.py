"""What each option of a training step costs and saves: a whole step of a pair with the paper's proportions, small enough for a CPU.

python benchmarks/options.py
"""

import argparse
from collections.abc import Callable
from typing import Literal

import torch
from common import Case, NotRunError, batch_of, parser, run
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig, SiglipVisionModel

from switchkd.batch import Batch
from switchkd.methods import KD, Method, SwitchKD
from switchkd.models import Pathway
from switchkd.models.layers import compile_layers, recompute
from switchkd.models.liger import use_kernels
from switchkd.pairing import Pair
from switchkd.train.step import DistillationStep

PROMPT, IMAGE_TOKEN = 15, 5
PARTS = ("vision", "projector", "language")


def model(options: argparse.Namespace, hidden: int, layers: int, attention: str, seed: int) -> Pathway:
    """SigLIP's 729 visual tokens, and a Qwen2 of the given size; the vision encoders of all models have one seed."""
    vision = SiglipVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=7, num_attention_heads=4, image_size=378, patch_size=14
    )  # fmt: skip
    language = Qwen2Config(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=2, vocab_size=options.vocabulary,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_id=IMAGE_TOKEN, vision_feature_select_strategy="full"
    )  # fmt: skip
    torch.manual_seed(seed)
    made = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention)
    torch.manual_seed(0)
    made.model.vision_tower.load_state_dict(SiglipVisionModel(vision).state_dict())
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    return Pathway(made.to(options.device, dtype))


def batch(options: argparse.Namespace) -> Batch:
    """Samples of one image, a prompt and an answer."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(6, options.vocabulary, (options.rows, PROMPT + options.tokens), generator=generator)
    ids = torch.cat([torch.full((options.rows, 729), IMAGE_TOKEN), words], dim=1)
    pixels = torch.randn(options.rows, 3, 378, 378, generator=generator)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    return batch_of(ids, options.tokens, pixels.to(dtype)).to(options.device)


def case(
    prepare: Callable[[Pair], None] = lambda pair: None,
    *,
    method: Method | None = None,
    train: tuple[str, ...] = PARTS,
    attention: str = "sdpa",
    loss: Literal["fused", "plain"] = "fused",
) -> Case:
    """One step, forward and backward, with what an option changes."""
    chosen = method or SwitchKD()

    def make(options: argparse.Namespace) -> Callable[[], object]:
        student, teacher = model(options, 256, 6, attention, 2), model(options, 512, 10, attention, 1)
        student.train_only(train)
        pair = Pair(student, teacher, needs=chosen.needs, vocabulary=student.head.rows)
        step = DistillationStep(pair, chosen, loss=loss).train()
        prepare(pair)
        inputs = batch(options)

        def forward_and_backward() -> None:
            step.zero_grad()
            step(inputs).loss.backward()

        return forward_and_backward

    return make


def compiled(pair: Pair) -> None:
    for pathway in (pair.student, pair.teacher):
        compile_layers([*pathway.part("vision"), *pathway.part("language")], backend="inductor")


def with_liger(pair: Pair) -> None:
    try:
        for pathway in (pair.student, pair.teacher):
            use_kernels(pathway, "liger")
    except ValueError as reason:
        raise NotRunError(str(reason)) from reason


CASES = {
    "as by default": case(),
    "loss: plain": case(loss="plain"),
    "switch_checkpointing": case(lambda pair: recompute(pair.teacher.part("language"))),
    "attn_implementation: eager": case(attention="eager"),
    "torch_compile": case(compiled),
    "kernels: liger": case(with_liger),
    "frozen encoder, method kd": case(method=KD(), train=("projector", "language")),
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=2)
    options.add_argument("--tokens", type=int, default=30, help="answer tokens of each row")
    options.add_argument("--vocabulary", type=int, default=32_000)
    run(__file__, CASES, [(name, {}) for name in CASES], options.parse_args())


if __name__ == "__main__":
    main()
