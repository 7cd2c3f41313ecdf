"""What the end of the page shows: what the runs took, where their recipes differ, and how answers were measured."""

from collections.abc import Callable, Mapping
from typing import Any

from switchkd.report.evidence import Evidence
from switchkd.report.sections import Values


def _seconds(value: float) -> str:
    return (
        f"{value:.1f} s"
        if value < 100
        else f"{value:.0f} s"
        if value < 600
        else f"{value / 60:.1f} min"
        if value < 6000
        else f"{value / 3600:.1f} h"
    )


_COSTS: dict[str, Callable[[float], str]] = {
    "steps": lambda value: f"{value:.0f}",
    "train seconds": _seconds,
    "run seconds": _seconds,
    "cpu seconds": _seconds,
    "peak memory MiB": lambda value: f"{value:.0f} MiB",
    "evaluation seconds": _seconds,
}
#: What the columns are called in the page.
_COST_NAMES = {
    "train seconds": "training",
    "run seconds": "whole run",
    "cpu seconds": "CPU time",
    "peak memory MiB": "peak memory",
    "evaluation seconds": "evaluation",
}


def cost(evidence: Evidence) -> Values:
    """Time and memory, as far as they were recorded."""
    known = [name for name in _COSTS if any(name in model.cost for model in evidence.models)]
    stepped = any(model.cost.get("train seconds") and model.cost.get("steps") for model in evidence.models)
    rows = []
    for model in evidence.models:
        cells = [_COSTS[name](model.cost[name]) if name in model.cost else "–" for name in known]
        steps, seconds = model.cost.get("steps"), model.cost.get("train seconds")
        per_step = [f"{1000 * seconds / steps:.0f} ms" if steps and seconds else "–"] if stepped else []
        place = f"{model.results.device}, {model.results.dtype}" if model.results else "–"
        rows.append({"name": model.name, "cells": [*cells, *per_step, place]})
    columns = [*(_COST_NAMES.get(name, name) for name in known), *(["per step"] if stepped else []), "evaluated on"]
    return {"columns": columns, "rows": rows if known else [], "memory": "peak memory MiB" in known}


def recipes(evidence: Evidence) -> Values:
    """Fields in which the resolved recipes differ; of one run, all of them."""
    runs = [model for model in evidence.models if model.recipe is not None]
    flat = {model.name: dict(_flat(model.recipe)) for model in runs}
    fields = list(dict.fromkeys(field for values in flat.values() for field in values))
    if len(runs) > 1:
        fields = [field for field in fields if len({values.get(field, _ABSENT) for values in flat.values()}) > 1]
    return {
        "names": list(flat),
        "rows": [{"field": f, "of": [v.get(f, _ABSENT) for v in flat.values()]} for f in fields],
    }


_ABSENT = "–"


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(dotted field, value as text) of nested mappings and lists."""
    if isinstance(tree, Mapping) and tree:
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(tree, list) and any(isinstance(item, Mapping | list) for item in tree):
        return [pair for index, value in enumerate(tree) for pair in _flat(value, f"{prefix}.{index}")]
    text = ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)
    return [(prefix, {"None": "none", "True": "true", "False": "false"}.get(text, text))]


def provenance(evidence: Evidence) -> list[tuple[str, str]]:
    """How it was measured, of the first model that was."""
    measured = next((model.results for model in evidence.models if model.results), None)
    if measured is None:
        return []
    facts = {
        "test data": measured.data,
        "fingerprint of the questions": measured.data_fingerprint,
        "image backend": measured.image_backend,
        "questions": str(measured.questions),
        "versions": ", ".join(f"{key} {value}" for key, value in measured.versions.items()),
        "generation": ", ".join(f"{key} {value}" for key, value in measured.generation.items()),
    }
    return list(facts.items())
