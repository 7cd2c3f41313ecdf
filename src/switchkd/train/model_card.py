"""The model card of a student: what it was distilled from, how, and how well it does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def model_card(
    *,
    recipe_yaml: str,
    student: str,
    teacher: str | None,
    methods: list[str],
    data: list[str],
    mismatches: Sequence[str] = (),
) -> str:
    """README.md of a checkpoint, in the form the Hugging Face hub reads; `mismatches`: in what student and teacher differ."""
    differ = "".join(f"\n- {line}" for line in mismatches)
    differ = f"\n## Where student and teacher differ\n{differ}\n" if differ else ""
    origin = f"distilled from [{teacher}] " if teacher else "trained "
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [switchkd, knowledge-distillation]
---

# {Path(student).name}, {origin}with {" → ".join(methods)}

A student trained with `switchkd`. It is a plain Hugging Face model: `AutoModelForImageTextToText.from_pretrained` and
`AutoProcessor.from_pretrained` load it, and no file of the teacher is in it.

| | |
|---|---|
| student initialised from | `{student}` |
| teacher | `{teacher or "none"}` |
| method | {" → ".join(methods)} |
| data | {", ".join(f"`{path}`" for path in data)} |
{differ}
## Recipe

```yaml
{recipe_yaml.strip()}
```
"""


def add_results(
    directory: str | Path,
    accuracy: Mapping[str, float],
    *,
    data: str,
    baseline: tuple[str, Mapping[str, float]] | None = None,
) -> None:
    """Write a table of exact-match accuracies, in percent, into the model card in `directory`, in place of one that is there.

    `baseline` is another model's name and its accuracies on the same questions: the table then has their difference, in points.
    """
    card = Path(directory) / "README.md"
    name, base = baseline or ("", {})
    head = f" points over {_text(name)} |" if baseline else ""
    rows = "\n".join(
        f"| {_text(kind)} | {value:.1f} |"
        + (f" {value - base[kind]:+.1f} |" if kind in base else " – |" * bool(baseline))
        for kind, value in accuracy.items()
    )
    text = card.read_text(encoding="utf-8").split("\n## Results\n")[0]
    table = f"| kind | accuracy |{head}\n|---|---:|{'---:|' * bool(baseline)}\n{rows}\n"
    card.write_text(
        f"{text}\n## Results\n\nExact match in percent on `{json.dumps(data)[1:-1]}`:\n\n{table}", encoding="utf-8"
    )


def _text(name: str) -> str:
    """A name from somewhere, as Markdown shows it as it is and in its cell."""
    for character in "\\|`*[]<>":
        name = name.replace(character, f"\\{character}")
    return " ".join(name.split())
