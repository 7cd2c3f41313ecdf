"""`switchkd models`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from switchkd.commands.verb import Verb


@dataclass(frozen=True)
class Models(Verb):
    """List the model families that can be distilled, and which of their members are tested; others are refused.

    Example: switchkd models
    """

    def run(self, fields: Sequence[str]) -> int:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

        from switchkd.models.families import FAMILIES

        table = Table("model_type", "class", "vision encoders tested", "language models tested")
        for name, family in FAMILIES.items():
            members = (family.tested.get(part, ("its own",)) for part in ("vision_config", "text_config"))
            table.add_row(name, CLASSES[name], *map(", ".join, members))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        return 0
