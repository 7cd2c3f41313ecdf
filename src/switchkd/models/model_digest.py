"""What tells a model from every other: a digest of its files."""

import json
from hashlib import blake2b
from pathlib import Path

from transformers.utils.hub import cached_file

from switchkd.manifest import checksums


def model_digest(path: str) -> str:
    """A digest of a model's weights and config, wherever they lie."""
    folder = Path(path)
    if not folder.is_dir():
        config = cached_file(path, "config.json")
        assert config is not None, f"{path} has been loaded from there"
        folder = Path(config).parent
    names = sorted(
        file.name for file in folder.iterdir() if file.suffix == ".safetensors" or file.name == "config.json"
    )
    return blake2b(json.dumps(checksums(folder, names)).encode(), digest_size=8).hexdigest()
