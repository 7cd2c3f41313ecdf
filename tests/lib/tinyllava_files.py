"""Tiny checkpoints in TinyLLaVA Factory's two layouts, and their logits, written without any code of switchkd.

Names and layout as TinyLLaVA Factory's own `save` writes them under transformers 4: towers keep a `vision_model.` that transformers 5 has
dropped, tied heads are left out, and there is no `tokenizer.json` beside a slow tokenizer's `vocab.json` and `merges.txt`.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_tokenizer
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

IMAGE_SIZE, PATCH = 32, 8
IMAGE_TOKEN_INDEX = -200
#: Rows beyond the tokenizer's 317 tokens, as Qwen2.5 has 151,936 for 151,665.
ROWS = 328
TURNS = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. USER: <image>\nWhat is in the image? ASSISTANT: A red circle.<|endoftext|>USER: Where? ASSISTANT: Left.<|endoftext|>"  # fmt: skip # noqa: E501


class Reference:
    """The three parts, with random weights: tower → features of the layer before the last → connector → language model."""

    def __init__(
        self,
        *,
        vision: str = "siglip",
        language: str = "qwen2",
        tied: bool = True,
        dtype: torch.dtype = torch.float32,
        hidden: int = 32,
        seed: int = 3,
    ) -> None:
        torch.manual_seed(seed)
        tower, tower_config = {
            "siglip": (SiglipVisionModel, SiglipVisionConfig),
            "clip": (CLIPVisionModel, CLIPVisionConfig),
        }[vision]
        model, model_config = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "llama": (LlamaForCausalLM, LlamaConfig)}[
            language
        ]
        heads = {"num_hidden_layers": 3, "num_attention_heads": 2}
        self.tower = tower(
            tower_config(hidden_size=24, intermediate_size=40, image_size=IMAGE_SIZE, patch_size=PATCH, **heads)
        )
        sizes = {
            "hidden_size": hidden,
            "intermediate_size": 48,
            "vocab_size": ROWS,
            "num_key_value_heads": 1,
            "tie_word_embeddings": tied,
        }
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
        self.language = model(model_config(**sizes, **rope, **heads, initializer_range=0.3))
        self.connector = nn.Sequential(nn.Linear(24, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        with torch.no_grad():
            for module in (self.tower, self.connector):
                for parameter in module.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        for module in (self.tower, self.language, self.connector):
            module.to(dtype).eval()
        self.vision, self.name, self.tied, self.dtype, self.hidden = vision, language, tied, dtype, hidden

    @torch.no_grad()
    def logits(self, input_ids: list[int], pixels: Tensor) -> Tensor:
        """[tokens, rows] of one conversation, every -200 in it replaced by the features of the next image."""
        features = self.connector(self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        embed, parts, images = self.language.get_input_embeddings(), [], iter(features)
        for token in input_ids:
            parts.append(next(images) if token == IMAGE_TOKEN_INDEX else embed(torch.tensor([token])))
        assert next(images, None) is None
        return self.language(inputs_embeds=torch.cat(parts)[None]).logits[0]

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Folder → name → tensor, as in the layout of three folders."""
        language = {k: v for k, v in self.language.state_dict().items() if not (self.tied and k == "lm_head.weight")}
        return {
            "language_model": language,
            "vision_tower": {f"vision_model.{k}": v for k, v in self.tower.state_dict().items()},
            "connector": {f"_connector.{k}": v for k, v in self.connector.state_dict().items()},
        }

    def config(self) -> dict:
        text = {
            "_name_or_path": "Qwen/Qwen2.5-0.5B", "architectures": ["Qwen2ForCausalLM"], "hidden_size": self.hidden,
            "intermediate_size": 48,
            "model_type": self.name, "num_attention_heads": 2, "num_hidden_layers": 3, "num_key_value_heads": 1,
            "rope_theta": 1000.0, "tie_word_embeddings": self.tied, "vocab_size": ROWS, "torch_dtype": "float16",
        }  # fmt: skip
        vision = {
            "hidden_size": 24, "image_size": IMAGE_SIZE, "intermediate_size": 40, "model_name_or_path": "google/siglip-so400m-patch14-384",
            "model_name_or_path2": "", "model_type": f"{self.vision}_vision_model", "num_attention_heads": 2, "num_hidden_layers": 3,
            "patch_size": PATCH,
        }  # fmt: skip
        return {
            "architectures": ["TinyLlavaForConditionalGeneration"], "cache_dir": None, "connector_type": "mlp2x_gelu",
            "hidden_size": self.hidden,
            "ignore_index": -100, "image_aspect_ratio": "square", "image_token_index": IMAGE_TOKEN_INDEX,
            "llm_model_name_or_path": "Qwen/Qwen2.5-0.5B", "model_type": "tinyllava", "num_queries": 128, "num_resampler_layers": 3,
            "pad_token": "<|endoftext|>", "pad_token_id": 316, "resampler_hidden_size": 768, "text_config": text,
            "tokenizer_model_max_length": 2048, "tokenizer_name_or_path": "Qwen/Qwen2.5-0.5B", "tokenizer_padding_side": "right",
            "tokenizer_use_fast": False, "torch_dtype": "float32", "transformers_version": "4.40.1", "tune_type_connector": "full",
            "tune_type_llm": "full", "tune_type_vision_tower": "frozen", "tune_vision_tower_from_layer": 0, "use_cache": True,
            "vision_config": vision, "vision_feature_layer": -2, "vision_feature_select_strategy": "patch", "vision_hidden_size": 24,
            "vision_model_name_or_path": "google/siglip-so400m-patch14-384", "vision_model_name_or_path2": "", "vocab_size": ROWS,
        }  # fmt: skip

    def write(self, folder: Path, layout: str = "whole") -> Path:
        """`whole`, `sharded` or `folders`."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config(), indent=2))
        write_tokenizer(folder)
        parts = self.tensors()
        if layout == "folders":
            for name, tensors in parts.items():
                (folder / name).mkdir()
                torch.save(tensors, folder / name / "pytorch_model.bin")
            return folder
        prefixes = {
            "language_model": "language_model.",
            "vision_tower": "vision_tower._vision_tower.",
            "connector": "connector.",
        }
        flat = {prefixes[part] + name: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
        if layout == "whole":
            save_file(flat, folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        names, places = sorted(flat), {}
        for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file({name: flat[name] for name in half}, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(half, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return folder


def write_tokenizer(folder: Path) -> None:
    """A slow Qwen2 tokenizer of 316 tokens and `<|endoftext|>`."""
    model = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
    tokens = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in special]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]) + "\n"
    )
    end = {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    settings = {
        "added_tokens_decoder": {str(len(tokens)): end}, "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", "model_max_length": 2048, "padding_side": "right", "tokenizer_class": "Qwen2Tokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
