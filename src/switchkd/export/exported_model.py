"""Writes a model for others, complete or not at all."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from switchkd.convert.checkpoint_files import complete_or_nothing
from switchkd.data.processor_files import save_processor
from switchkd.data.template_choice import choose_format, use_format
from switchkd.export.engines import LANGUAGE_NAMED, Serving, check_layout, serving
from switchkd.models import load_pathway
from switchkd.models.fill import name_as_on_the_hub
from switchkd.models.opening import load_processor
from switchkd.models.run_folder import model_folder
from switchkd.train.model_card import card_of_export

Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    #: Files of weights, and their bytes.
    files: int
    size: int
    dtype: str
    #: What the card says; None where no licence is known.
    license: str | None
    #: How it is served from there.
    engines: tuple[Serving, ...]


def export(
    source: str, output: Path, *, dtype: Precision = "auto", shard: str = "5GB", license_name: str | None = None
) -> Exported:
    """Write a model with its processor, chat template, generation config and card into a new folder.

    Args:
        source: a checkpoint directory, a run, or a name on the hub.
        output: a new directory.
        dtype: of the weights; `auto` keeps the checkpoint's.
        shard: of the weights, the largest file.
        license_name: of the card; by default that of the model's own card.

    Raises:
        ValueError: the model cannot be used, the folder is there, or what was written is not laid out as engines expect it.
    """
    model: Any = load_pathway(source, dtype=dtype).model
    processor = load_processor(source)
    use_format(
        processor, choose_format(processor)
    )  # where the checkpoint has no template, the one that it was taught in
    if model.config.model_type in LANGUAGE_NAMED and model.config.text_config.architectures is None:
        model.config.text_config.architectures = [
            "LlamaForCausalLM"
        ]  # by which llama.cpp's converter knows the language model
    name_as_on_the_hub(model)
    engines = serving(model.config.model_type, output.name)
    written = str(model.dtype).removeprefix("torch.")
    card, known = card_of_export(
        model_folder(source), named=source, license_name=license_name, dtype=written, serving=_described(engines)
    )
    with complete_or_nothing(output) as folder:
        model.save_pretrained(folder, max_shard_size=shard)
        save_processor(processor, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        check_layout(folder)
        weights = [file.stat().st_size for file in folder.glob("*.safetensors")]
    shown = serving(model.config.model_type, str(output))
    return Exported(output, len(weights), sum(weights), written, known, shown)


def _described(engines: tuple[Serving, ...]) -> str:
    """For the card."""
    parts = []
    for one in engines:
        commands = "\n".join(one.commands)
        parts.append(f"{one.engine}:\n\n```sh\n{commands}\n```" if commands else f"{one.engine}: no, {one.reason}.")
    return "\n\n".join(parts)
