"""The model card of a student: what it was distilled from, how, and how well it does."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from switchkd.files import write_together
from switchkd.models.run_folder import model_folder

_TASK = "image-text-to-text"
#: Begins what an export adds.
_SERVING = "\n## Serving\n"


def model_card(
    *,
    recipe_yaml: str,
    student: str,
    teachers: Sequence[str],
    methods: list[str],
    data: list[str],
    template: str = "the checkpoint's own",
    dtype: str = "float32",
    mismatches: Sequence[str] = (),
    ran: Mapping[str, str] | None = None,
    continued: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """README.md of a checkpoint, in the form the Hugging Face hub reads.

    Args:
        recipe_yaml: the resolved recipe.
        student: the folder or hub name that training started from. Its licence is the card's, where its own card names one.
        teachers: folders or hub names of the teachers, in the order of their stages.
        methods: names of the methods, stage by stage.
        data: what it was trained on.
        template: which chat template it was asked and taught in.
        dtype: of the finished student's weights.
        mismatches: in what student and teacher differ.
        ran: what the last stage ran with (`what_ran`).
        continued: the run that it goes on from, if there is one.
        tags: of teachers that share a stage, of which each row names one: that name → folder or hub name.
    """
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["switchkd", "knowledge-distillation"],
        base_model=list(dict.fromkeys(path for path in (student, *teachers) if _on_the_hub(path))) or None,
        datasets=[name for path in data if _on_the_hub(name := path.split(":")[0])] or None,
        license=_license(student),
    )
    differ = "".join(f"\n- {line}" for line in mismatches)
    differ = f"\n## Where student and teacher differ\n{differ}\n" if differ else ""
    lines = "".join(f"\n| {name} | {value} |" for name, value in (ran or {}).items())
    measured = f"\n## What ran\n\n| | |\n|---|---|{lines}\n" if lines else ""
    taught = _together(list(dict.fromkeys(teachers)), tags or {})
    rows = {path: f" (rows of {tag})" for tag, path in (tags or {}).items()}
    named = " → ".join(" + ".join(f"`{path}`{rows.get(path, '')}" for path in group) for group in taught) or "`none`"
    origin = "trained "
    if taught:
        origin = f"distilled from {' → '.join(' + '.join(f'[{path}]' for path in group) for group in taught)} "
    return f"""---
{metadata.to_yaml()}
---

# {Path(student).name}, {origin}with {" → ".join(methods)}

A student trained with `switchkd`. It is a plain Hugging Face model: `AutoModelForImageTextToText.from_pretrained` and
`AutoProcessor.from_pretrained` load it, and no file of the teacher is in it.

| | |
|---|---|
| student initialised from | `{student}` |
{f"| goes on from the run | {continued} |{chr(10)}" if continued else ""}| teacher | {named} |
| method | {" → ".join(methods)} |
| data | {", ".join(f"`{path}`" for path in data)} |
| chat template | {_text(template)} |
| precision of the weights | {dtype} |
{differ}{measured}
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
    metric: str = "exact",
) -> None:
    """Write scores, in percent, into the model card in `directory`, as a table and as metadata.

    Args:
        directory: of the student. Results that its card has are replaced.
        accuracy: kind of question → percent.
        data: what was asked.
        baseline: another model's name and its accuracies on the same questions: the table then has their difference, in points.
        metric: what the answers were scored by.
    """
    file = Path(directory) / "README.md"
    name, base = baseline or ("", {})
    head = f" points over {_text(name)} |" if baseline else ""
    lines = "\n".join(
        f"| {_text(kind)} | {value:.1f} |"
        + (f" {value - base[kind]:+.1f} |" if kind in base else " – |" * bool(baseline))
        for kind, value in accuracy.items()
    )
    table = f"| kind | accuracy |{head}\n|---|---:|{'---:|' * bool(baseline)}\n{lines}\n"
    card = ModelCard(file.read_text(encoding="utf-8"))
    card.text = card.text.split("\n## Results\n")[0]
    title = "Exact match in percent" if metric == "exact" else f"Score in percent, by the metric {metric},"
    card.text += f"\n## Results\n\n{title} on `{json.dumps(data)[1:-1]}`:\n\n{table}"
    metadata: Any = card.data  # its hints know no field of a model's card
    metadata.model_name = Path(directory).resolve().parent.name
    kind_of_metric = "exact_match" if metric == "exact" else metric
    metadata.eval_results = [
        EvalResult(_TASK, data, Path(data).name, kind_of_metric, round(value, 2), metric_name=kind)
        for kind, value in accuracy.items()
    ]
    write_together({file: str(card)})


def card_of_export(
    model: str, *, named: str, license_name: str | None, dtype: str, serving: str
) -> tuple[str, str | None]:
    """README.md of an exported model, and the licence that it names: the model's own card with its new precision and how it is served.

    Args:
        model: its folder, or its name on the hub.
        named: what the user called it.
        license_name: the licence, where another one is asked for than that of its own card.
        dtype: of the exported weights.
        serving: Markdown.
    """
    file = _card_file(model)
    if file is None:
        base = [model] if _on_the_hub(model) else None
        metadata = ModelCardData(base_model=base, tags=["switchkd"])
        card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {Path(named).name}\n")
    else:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    data: Any = card.data
    data.license = license_name or data.license
    data.library_name, data.pipeline_tag = data.library_name or "transformers", data.pipeline_tag or _TASK
    text = re.sub(r"(?m)^\| precision of the weights \| .* \|$", f"| precision of the weights | {dtype} |", card.text)
    card.text = f"{text.split(_SERVING)[0].rstrip()}\n{_SERVING}\nThe weights are {dtype}.\n\n{serving}\n"
    return str(card), data.license


def _together(teachers: Sequence[str], tags: Mapping[str, str]) -> list[list[str]]:
    """The teachers one after the other, and those by tags together."""
    groups: list[list[str]] = []
    shared = [path for path in teachers if path in tags.values()]
    for path in teachers:
        if path not in shared:
            groups.append([path])
        elif path == shared[0]:
            groups.append(shared)
    return groups


def _on_the_hub(path: str) -> bool:
    """Whether it is a name on the hub (OWNER/NAME) and no path of this machine."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not path.startswith(".") and not Path(path).exists()


def _card_file(model: str) -> Path | None:
    """The model's own card: of a folder, or as it lies in the cache of the hub."""
    if Path(model).is_dir():
        card = Path(model, "README.md")
        return card if card.is_file() else None
    cached = try_to_load_from_cache(model, "README.md") if _on_the_hub(model) else None
    return Path(cached) if isinstance(cached, str) else None


def _license(model: str) -> str | None:
    """What the model's own card says, where it can be read."""
    card = _card_file(model_folder(model))
    if card is None:
        return None
    metadata: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    return None if metadata.license is None else str(metadata.license)


def _text(name: str) -> str:
    """A name from somewhere, as Markdown shows it as it is and in its cell."""
    for character in "\\|`*[]<>":
        name = name.replace(character, f"\\{character}")
    return " ".join(name.split())
