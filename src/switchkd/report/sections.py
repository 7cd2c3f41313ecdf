"""What each part of the page shows, as values that the template lays out. No markup here, and no prose but of what is missing."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from switchkd.report import alt_texts, figures, pictures
from switchkd.report.choose import changed, compared, varied
from switchkd.report.evidence import PATHWAYS, TEN, Evidence, Model
from switchkd.results.intervals import Interval, intervals
from switchkd.results.question_results import MEAN, OVERALL

Values = dict[str, Any]
_T = TypeVar("_T")
#: Model → what it was scored on → the interval of its difference to the baseline.
Intervals = Mapping[str, Mapping[str, Interval]]
#: How many models' attention is drawn side by side at most, and how many a radar shows.
SIDE_BY_SIDE = 4


def signed(value: float) -> str:
    """A difference: always with its sign and one decimal."""
    return "0.0" if round(value, 1) == 0 else f"{value:+.1f}".replace("-", "−")


def direction(interval: Interval | None) -> str:
    """How a difference is coloured: only where its interval leaves 0 out."""
    return "same" if interval is None or not interval.leaves_out_zero else "up" if interval.low > 0 else "down"


def bounds(interval: Interval | None) -> str | None:
    """An interval as it stands under its difference."""
    return None if interval is None else f"[{signed(interval.low)}, {signed(interval.high)}]"


def grid(
    scores: Mapping[str, Mapping[str, float | None]],
    baseline: str | None,
    counts: Mapping[str, int],
    against: Mapping[str, str] | None = None,
    of_differences: Intervals | None = None,
) -> Values:
    """Models × what they were scored on; every score but the baseline's with its difference to it, or to what it is `against`."""
    columns = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = []
    for model, row in scores.items():
        other_model = (against or {}).get(model, baseline)
        base = scores.get(other_model, {}) if other_model is not None and model != baseline else {}
        cells = []
        for column in columns:
            value, other = row.get(column), base.get(column)
            difference = None if value is None or other is None else value - other
            interval = (of_differences or {}).get(model, {}).get(column)
            cells.append(
                {
                    "value": "–" if value is None else f"{value:.1f}",
                    "difference": None if difference is None else signed(difference),
                    "direction": None if difference is None else direction(interval),
                    "interval": None if difference is None else bounds(interval),
                    "main": column in (MEAN, TEN),
                }
            )
        rows.append(
            {
                "name": model,
                "is_baseline": model == baseline,
                "against": None if other_model == baseline else other_model,
                "cells": cells,
            }
        )
    return {
        "columns": [{"name": name, "questions": counts.get(name), "main": name in (MEAN, TEN)} for name in columns],
        "rows": rows,
    }


def few(
    scores: Mapping[str, Mapping[str, float | None]], baseline: str | None
) -> dict[str, Mapping[str, float | None]]:
    """Of many models only the baseline and the best, which a radar can still show; in their order."""

    def mean(name: str) -> float:
        return statistics.fmean([value for value in scores[name].values() if value is not None] or [0])

    best = sorted(scores, key=lambda name: (name != baseline, -mean(name)))[:SIDE_BY_SIDE]
    return {name: row for name, row in scores.items() if len(scores) <= SIDE_BY_SIDE + 1 or name in best}


def scores_of(model: Model) -> dict[str, float | None]:
    """The mean first, then every kind."""
    results = model.results
    if results is None:
        return {}
    mean = {MEAN: results.mean_over_kinds_percent} if results.kinds else {}
    kinds = {kind: score.accuracy_percent for kind, score in results.kinds.items()}
    return {**mean, OVERALL: results.accuracy_percent, **kinds}


def results(evidence: Evidence) -> Values:
    """Accuracy per kind, benchmarks, and a radar of each."""
    keys = figures.figure_keys(evidence)
    scores = {model.name: scores_of(model) for model in evidence.models if model.results}
    counts: dict[str, int] = {}
    if asked := next((model.results for model in evidence.models if model.results), None):
        counts = {kind: score.questions for kind, score in asked.kinds.items()} | {OVERALL: asked.questions}
    if all(abs((row.get(MEAN) or -1) - (row[OVERALL] or 0)) < 0.05 for row in scores.values()):  # kinds of one size
        scores = {name: {key: value for key, value in row.items() if key != OVERALL} for name, row in scores.items()}
    public: dict[str, dict[str, float | None]] = {
        model.name: dict(model.benchmarks) for model in evidence.models if model.benchmarks
    }
    part: Values = {
        "charts": {},
        "differences": None,
        "sure": False,
        "headlines": [],
        "table": None,
        "heading": asked.heading if asked else None,
        "benchmarks": None,
        "notes": _missing(evidence, "results"),
    }
    if scores:
        of_differences = difference_intervals(evidence)
        part["table"] = grid(scores, evidence.baseline, counts, of_differences=of_differences)
        part["sure"] = bool(of_differences)
        kinds = {name: {k: v for k, v in row.items() if k not in (MEAN, OVERALL)} for name, row in scores.items()}
        part["charts"]["kinds"] = figures.radar(few(kinds, evidence.baseline), keys, "%")
        part["differences"] = figures.differences(kinds, evidence.baseline, keys, of_differences)
        part["headlines"] = [
            {
                "name": name,
                "value": f"{main:.1f} %",
                **_difference(
                    main,
                    _main(scores.get(evidence.baseline or "", {})),
                    name == evidence.baseline,
                    _main(of_differences.get(name, {})),
                ),
            }
            for name, row in scores.items()
            if (main := _main(row)) is not None
        ]
    if public:
        part["benchmarks"] = grid(public, evidence.baseline, {})
        ten = {name: {k: v for k, v in row.items() if k != TEN} for name, row in public.items()}
        part["charts"]["benchmarks"] = figures.radar(few(ten, evidence.baseline), keys, "%")
    return part


def difference_intervals(evidence: Evidence) -> Intervals:
    """Of every model whose answers, like the baseline's, are there: resampled question by question, those of a picture together."""
    return {
        model.name: intervals(list(model.answers.values()), list(base.answers.values()))
        for model, base in compared(evidence)
        if model.answers.keys() == base.answers.keys()
    }


def _main(scores: Mapping[str, _T]) -> _T | None:
    return scores.get(MEAN, scores.get(OVERALL))


def _difference(value: float, base: float | None, is_baseline: bool, interval: Interval | None) -> Values:
    if base is None or is_baseline:
        return {"difference": None, "direction": "same", "interval": None}
    return {"difference": signed(value - base), "direction": direction(interval), "interval": bounds(interval)}


def _missing(evidence: Evidence, part: str) -> list[Values]:
    """Sentences, each with the models that it is about."""
    return _grouped({model.name: [model.missing[part]] for model in evidence.models if part in model.missing})


def _grouped(sentences: Mapping[str, Sequence[str]]) -> list[Values]:
    about: dict[str, list[str]] = {}
    for name, of_model in sentences.items():
        for sentence in of_model:
            about.setdefault(sentence, []).append(name)
    return [{"names": names, "text": sentence} for sentence, names in about.items()]


def training(evidence: Evidence) -> Values:
    """The loss and its terms, each in a chart of its own."""
    runs = [model for model in evidence.models if model.curves]
    longest = max((len(curve) for model in runs for curve in model.curves.values()), default=0)
    stages = {model.name: model.stages for model in runs if len(model.stages) > 1}
    return {
        "charts": figures.losses(runs, figures.figure_keys(evidence)),
        "averaged": -(-longest // figures.POINTS),
        "unlike": figures.unlike_terms(runs),
        "stages": stages,
        "notes": _missing(evidence, "curves"),
    }


def knees(evidence: Evidence) -> Values:
    """k over time as training logged it, and its distribution on test questions."""
    over_time = {model.name: chart for model in evidence.models if (chart := figures.knees_over_time(model))}
    distributions, table = {}, []
    for model in evidence.models:
        if model.probe and model.probe.knees:
            distributions[model.name] = figures.knee_distribution(model.probe.knees)
            for who in PATHWAYS:
                if values := model.probe.knees.get(who):
                    low, middle, high = (_quantile(values, share) for share in (0.1, 0.5, 0.9))
                    least = 100 * sum(k <= model.probe.min_k for k in values) / len(values)
                    cells = [f"{statistics.fmean(values):.1f}", str(middle), f"{low} – {high}", f"{least:.1f}"]
                    table.append({"name": model.name, "pathway": who, "cells": cells})
    silent = [model.name for model in evidence.models if model.curves and model.name not in over_time]
    probes = [model.probe for model in evidence.models if model.probe and model.probe.knees]
    return {
        "over_time": over_time,
        "distributions": distributions,
        "table": table,
        "silent": silent,
        "windows": sorted({"all ids" if probe.window is None else str(probe.window) for probe in probes}),
        "least": sorted({probe.min_k for probe in probes}),
        **_probed(evidence),
    }


def _quantile(values: Sequence[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _probed(evidence: Evidence) -> Values:
    """On how much was computed, and why not more."""
    probes = {model.name: model.probe for model in evidence.models if model.probe}
    counted = [probe for probe in probes.values() if probe.knees]
    return {
        "questions": counted[0].questions if counted else 0,
        "tokens": counted[0].tokens if counted else 0,
        "probe_notes": _grouped({name: probe.notes for name, probe in probes.items()}),
        "skipped": not evidence.probed,
    }


def agreement(evidence: Evidence) -> Values:
    """How often student and switch prefer the teacher's next token, how far their distributions are, and how often answers are the same."""
    rows = []
    for model in evidence.models:
        for who, near in (model.probe.agreement if model.probe else {}).items():
            cells = [f"{near.same_first_percent:.1f}", f"{near.forward_kl_nats:.3f}", f"{near.reverse_kl_nats:.3f}"]
            rows.append({"name": model.name, "pathway": who, "cells": cells})
    shares: dict[str, dict[str, float | None]] = {
        name: {OVERALL: row[None], **{kind: row[kind] for kind in sorted(filter(None, row))}}
        for name, row in evidence.same_answers.items()
    }
    return {
        "rows": rows,
        "answers": grid(shares, evidence.baseline, {}, of_differences=evidence.same_intervals) if shares else None,
        **_probed(evidence),
    }


def attention(evidence: Evidence) -> Values:
    """For each chosen question its image, and the attention of teacher, student and switch over it."""
    able = [model for model in evidence.models if model.probe and model.probe.attention]
    able.sort(key=lambda model: (model.name != evidence.baseline, -(scores_of(model).get(OVERALL) or 0)))
    shown = able[:SIDE_BY_SIDE]
    cards = []
    for name in evidence.chosen:
        picture = evidence.pictures.get(name)
        maps = [
            (model, model.probe.attention[name]) for model in shown if model.probe and name in model.probe.attention
        ]
        if picture is None or not maps:
            continue
        tiles: list[Values] = []
        teachers: list[Any] = []
        for model, of_model in maps:
            for who in PATHWAYS:
                if who not in of_model or (who == "teacher" and of_model[who] in teachers):
                    continue  # one teacher of several runs is shown once
                if who == "teacher":
                    teachers.append(of_model[who])
                share = 100 * sum(map(sum, of_model[who]))
                tiles.append(
                    {
                        "uri": pictures.uri(pictures.overlay(picture, of_model[who])),
                        "pathway": who,
                        "model": model.name if who != "teacher" or len(teachers) > 1 else None,
                        "share": f"{share:.0f}",
                        "alt": alt_texts.of_attention(of_model[who]),
                    }
                )
        tiles.sort(key=lambda tile: tile["pathway"] != "teacher")
        answers = [(model.name, model.answers[name]) for model in evidence.models if name in model.answers]
        given = [
            {"name": who, "got": answer.got, "right": answer.right}
            for who, answer in answers
            if who in {m.name for m in shown}
        ]
        question = answers[0][1] if answers else None
        cards.append(
            {
                "id": name,
                "question": question,
                "image": pictures.uri(pictures.small(picture)),
                "tiles": tiles,
                "said": given,
            }
        )
    return {"cards": cards, "more": [model.name for model in able[SIDE_BY_SIDE:]], **_probed(evidence)}


def examples(evidence: Evidence) -> Values:
    """Questions won and lost against the baseline, for each model."""
    groups: list[Values] = []
    for model, base in compared(evidence):
        won, lost = changed(model, base)
        sides: list[Values] = []
        for side, names in (("won", won), ("lost", lost)):
            cards = []
            for name in varied(names, model.answers):
                answer, picture = model.answers[name], evidence.pictures.get(name)
                uri = None if picture is None else pictures.uri(pictures.small(picture))
                cards.append({"id": name, "answer": answer, "base": base.answers[name].got, "uri": uri})
            sides.append({"side": side, "count": len(names), "cards": cards})
        both = sum(name in base.answers for name in model.answers)
        groups.append({"name": model.name, "base": base.name, "questions": both, "sides": sides})
    runs = [group for group in groups if any(m.name == group["name"] and m.recipe for m in evidence.models)]
    best = max(runs or groups, key=lambda group: group["sides"][0]["count"] - group["sides"][1]["count"], default=None)
    unanswered = [model.name for model in evidence.models if model.results and not model.answers]
    return {"groups": groups, "open": best["name"] if best else None, "unanswered": unanswered}
