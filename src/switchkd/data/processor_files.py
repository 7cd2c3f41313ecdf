"""Writes a processor: the files of transformers 5, and the separate ones that transformers 4 and serving engines read."""

import json
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from switchkd.files import write_together

#: Part of a processor → the file that it has by itself.
_FILES = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}


def save_processor(processor: ProcessorMixin, directory: str | Path) -> None:
    """Write tokenizer, chat template and settings; those of images and videos also by themselves, under the names that hubs know."""
    processor.save_pretrained(directory)
    written = {}
    for part, file in _FILES.items():
        settings: Any = getattr(processor, part, None)
        if settings is None:
            continue
        entries = {**json.loads(settings.to_json_string()), "processor_class": type(processor).__name__}
        kind = f"{part}_type"
        if kind in entries:  # transformers 5 calls by another name what works without torchvision
            entries[kind] = entries[kind].removesuffix("Pil")
        written[Path(directory) / file] = json.dumps(entries, indent=2, sort_keys=True) + "\n"
    write_together(written)
