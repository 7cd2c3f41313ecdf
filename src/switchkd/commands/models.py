"""`switchkd models`."""

from collections.abc import Sequence
from dataclasses import dataclass

from switchkd.commands.verb import Verb, print_json


@dataclass(frozen=True)
class Models(Verb):
    """List the model families that can be distilled, and which of their members are tested; others are refused.

    Example: switchkd models
    """

    #: As JSON.
    json: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Print the table."""
        from rich.table import Table
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

        from switchkd.console import terminal
        from switchkd.models.families import FAMILIES

        headings = ("model_type", "class", "vision encoders tested", "language models tested")
        rows: list[tuple[str, str, Sequence[str], Sequence[str]]] = []
        for name, family in FAMILIES.items():
            vision, language = (family.tested.get(part, ("its own",)) for part in ("vision_config", "text_config"))
            rows.append((name, CLASSES[name], vision, language))
        if self.json:
            names = [heading.replace(" ", "_") for heading in headings]
            print_json([dict(zip(names, row, strict=True)) for row in rows])
            return 0
        table = Table(*headings)
        for name, kind, *parts in rows:
            table.add_row(name, kind, *map(", ".join, parts))
        terminal(width=160).print(table)
        return 0
