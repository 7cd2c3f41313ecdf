"""What an answer counts: one function of the accepted answers and the given one for each metric, as it was published.

| metric | points of one answer | source |
|---|---|---|
| `exact` | 1 where equal after the normalisation of `results/score.py` | |
| `contains` | 1 where the answer holds an accepted one as whole words, both normalised | |
| `anls` | 1 − NL where NL < 0.5, else 0; NL is the edit distance by the longer length, of lower-case texts | Biten et al. 2019 |
| `relaxed` | 1 for a number at most 5 % off, for another text where it is equal | Methani et al. 2020; ChartQA |
| `vqa` | the mean over people of min(1, the others who gave the answer / 3) | Antol et al. 2015 |
| `choice` | 1 where the letter that the answer chooses is the expected one | |
| `rouge` | ROUGE-L, F1, of Google's rouge-score (extra `metrics`) | Lin 2004 |
| `cider` | CIDEr-D; 100 times the mean is the published figure | Vedantam et al. 2015 |

Of several accepted answers the best one counts, but for `vqa` and `cider`, which are about all of them.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from switchkd.results.score import is_right, normalise

#: Kind of question → metric; None: of all others.
Chosen = Mapping[str | None, str]
#: (accepted answers, the given one), of every question that is scored by the metric → points of each.
Asked = Sequence[tuple[Sequence[str], str]]
_ARTICLES = {"a", "an", "the"}
#: What the official evaluation of VQA takes for punctuation, besides points.
_VQA_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = dict(
    zip(
        ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
        strict=True,
    )
)
_OPENING, _CLOSING = r"(?:\\boxed|[(\[{*\"“'‘])*", r"(?:[)\]}.:,;*\"”'’]+(?:\s|$)|[^\S\n]*(?:\n|$))"
#: A letter that stands alone. A capital may also have words behind it, but not as the word I, in T-shirt, or where it is said to be wrong.
_ALONE = rf"{_OPENING}([A-Za-z]){_CLOSING}"
_LETTER = rf"{_OPENING}(?:([A-HJ-Z]|I(?!\s+\w))\b(?!['’-]\w)(?!\s+(?:is|was)\s+(?:not|wrong|incorrect|false)\b)|([A-Za-z]){_CLOSING})"
#: How answers say what they choose, the surest first; of each the first one counts.
_CHOICES = (
    re.compile(rf"\A\s*{_ALONE}"),
    re.compile(r"\A\s*([A-Z])\s+(?:because|since|is\s+(?:the\s+)?(?:correct|right|best))\b"),
    re.compile(rf"\b(?i:answer(?:\s+is)?\b[\s:*]*(?:\b(?:the\s+)?(?:option|choice|letter)\b\s*)?){_LETTER}"),
    re.compile(rf"\b(?i:(?:option|choice)(?:\s+is)?\b[\s:*]*){_LETTER}"),
    re.compile(r"\A[^(]*\(([A-Z])\)[^(]*$"),
)


def exact(accepted: Sequence[str], given: str) -> float:
    """1 where an accepted answer is the given one."""
    return float(any(is_right(one, given) for one in accepted))


def contains(accepted: Sequence[str], given: str) -> float:
    """1 where an accepted answer is in the given one, as whole words or numbers: 5 is in `about 5`, and in no -5, 5.3, .5 or 15."""
    text = normalise(given)
    before = r"(?<!\w)(?<!\d[.,])(?<!-)(?:(?!\d)|(?<!^\.)(?<![^\w.]\.))"
    patterns = (rf"{before}{re.escape(normalise(one))}(?!\w)(?![.,]\d)" for one in accepted)
    return float(any(re.search(pattern, text) for pattern in patterns))


def anls(accepted: Sequence[str], given: str) -> float:
    """The average normalised Levenshtein similarity, of one answer."""
    return max(_similarity(" ".join(one.lower().split()), " ".join(given.lower().split())) for one in accepted)


def _similarity(one: str, other: str) -> float:
    distance = _edits(one, other) / max(len(one), len(other), 1)
    return 1 - distance if distance < 0.5 else 0.0


def _edits(one: str, other: str) -> int:
    """Insertions, deletions and replacements from one text to the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed(accepted: Sequence[str], given: str) -> float:
    """1 for a number that is at most 5 % off; 0 is met by 0 alone. Texts are compared as by `exact`."""
    return float(any(_relaxed(one, given) for one in accepted))


def _relaxed(expected: str, given: str) -> bool:
    wanted, got = _number(expected), _number(given)
    if wanted is None or got is None:
        return is_right(expected, given)
    return abs(got - wanted) <= 0.05 * abs(wanted) + 1e-12


def _number(text: str) -> float | None:
    """`1,200`, `$3.5` and `12 %` too; a percentage is a hundredth."""
    text = text.strip().rstrip(".").replace("−", "-")
    found = re.fullmatch(r"([-+]?)[$€£]?\s*((?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\s*(%?)", text)
    if found is None or not found[2]:
        return None
    value = float(found[2].replace(",", "")) * (-1 if found[1] == "-" else 1)
    return value / 100 if found[3] else value


def vqa(accepted: Sequence[str], given: str) -> float:
    """The soft accuracy over the answers of several people: of each of them, how many of the others gave the answer, three are enough."""
    people, answer = [_vqa_form(one) for one in accepted], _vqa_form(given)
    return sum(min(1.0, (people.count(answer) - (one == answer)) / 3) for one in people) / len(people)


def _vqa_form(text: str) -> str:
    """As the official evaluation compares: no case, articles, punctuation; small numbers as digits. Apostrophes are left out of all words,
    where it lists contractions.

    A punctuation mark of its list becomes a space (`t-shirt` is `t shirt`), or nothing in a text where it stands beside a space or a comma
    between digits (`1,200`). Points are left out, but before a digit.
    """
    text = re.sub("['’]", "", " ".join(text.lower().split()))
    grouped = re.search(r"\d,\d", text)
    form = text
    for mark in _VQA_MARKS:
        form = form.replace(mark, "" if grouped or f"{mark} " in text or f" {mark}" in text else " ")
    words = re.sub(r"\.(?!\d)", "", form).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def choice(accepted: Sequence[str], given: str) -> float:
    """1 where the answer chooses the expected letter: `B`, `(b)`, `B. A cat`, `The answer is: B`, not that of `The answer is a cat`."""
    letter = chosen_letter(given)
    return float(letter is not None and letter in map(chosen_letter, accepted))


def chosen_letter(text: str) -> str | None:
    """The letter that a text chooses first, as a capital; None where it chooses none. A small letter has no words behind it."""
    found = next((found for pattern in _CHOICES if (found := pattern.search(text))), None)
    return found[found.lastindex or 0].upper() if found else None


def rouge(asked: Asked) -> list[float]:
    """ROUGE-L.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError('the metric rouge needs rouge-score: pip install "switchkd[metrics]"') from error
    scorer = RougeScorer(["rougeL"])
    return [float(scorer.score_multi(list(accepted), given)["rougeL"].fmeasure) for accepted, given in asked]


def cider(asked: Asked) -> list[float]:
    """CIDEr-D: how alike the n-grams of a caption and of its references are, weighed by how few pictures have them. From 0 to 10."""
    references = [[_grams(one) for one in accepted] for accepted, _ in asked]
    pictures = [Counter(set().union(*of_one)) for of_one in references]
    seen = sum(pictures, Counter[tuple[str, ...]]())
    weight = {gram: math.log(len(asked)) - math.log(count) for gram, count in seen.items()}
    unseen = math.log(len(asked)) if asked else 0.0
    points = []
    for of_one, (_, given) in zip(references, asked, strict=True):
        said = _grams(given)
        alike = [_alike(said, one, weight, unseen) for one in of_one]
        points.append(10 * sum(alike) / len(alike))
    return points


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = re.findall(r"\w+(?:'\w+)?", text.lower())
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _alike(
    said: Counter[tuple[str, ...]],
    reference: Counter[tuple[str, ...]],
    weight: Mapping[tuple[str, ...], float],
    unseen: float,
) -> float:
    """The mean over n of the clipped cosine, times a penalty for another length (σ = 6)."""
    total = 0.0
    for n in range(1, 5):
        ours = {gram: count * weight.get(gram, unseen) for gram, count in said.items() if len(gram) == n}
        theirs = {gram: count * weight[gram] for gram, count in reference.items() if len(gram) == n}
        product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs)
        norms = math.sqrt(sum(v * v for v in ours.values())) * math.sqrt(sum(v * v for v in theirs.values()))
        total += product / norms if norms else 0.0
    words = [sum(count for gram, count in one.items() if len(gram) == 2) for one in (said, reference)]
    return total / 4 * math.exp(-((words[0] - words[1]) ** 2) / (2 * 6.0**2))


def _each(points: Callable[[Sequence[str], str], float]) -> Callable[[Asked], list[float]]:
    return lambda asked: [points(accepted, given) for accepted, given in asked]


#: Name → points of all questions that are scored by it.
METRICS: dict[str, Callable[[Asked], list[float]]] = {
    **{one.__name__: _each(one) for one in (exact, contains, anls, relaxed, vqa, choice)},
    "rouge": rouge,
    "cider": cider,
}


def metric_words(given: Sequence[str] | Mapping[str, str]) -> list[str]:
    """What a recipe says, words or kind → metric, as the words of `switchkd evaluate --metric`."""
    return [f"{kind}={metric}" for kind, metric in given.items()] if isinstance(given, Mapping) else list(given)


def parse_metrics(given: Sequence[str] | Mapping[str, str]) -> dict[str | None, str]:
    """`anls`, `count=exact` …, or a mapping of kinds → kind → metric; None: of all others.

    Raises:
        ValueError: a metric that is not known, or two for one kind.
    """
    chosen: dict[str | None, str] = {}
    for word in metric_words(given):
        kind, marked, metric = word.rpartition("=")
        if metric not in METRICS:
            raise ValueError(
                f"there is no metric {metric!a}; there are {', '.join(METRICS)}, for all questions or as KIND=METRIC"
            )
        key = kind if marked else None
        if key in chosen:
            raise ValueError(f"two metrics are given for {'all questions' if key is None else f'the kind {key}'}")
        chosen[key] = metric
    return chosen


def check_accepted(metric: str, accepted: Sequence[str]) -> str | None:
    """Why the accepted answers of a question cannot be scored by a metric; None where they can."""
    if metric not in METRICS:
        return f"its metric {metric!a} is none of {', '.join(METRICS)}"
    if metric == "vqa" and len(accepted) < 3:
        return f"the metric vqa compares with the answers of several people (ten in VQAv2), and `accepted` has {len(accepted)}"
    if metric == "choice" and not all(map(chosen_letter, accepted)):
        return f"the metric choice needs a letter to compare with, and the answer is {accepted[0]!a:.60}"
    return None
