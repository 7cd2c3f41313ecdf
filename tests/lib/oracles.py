"""Slow, literal versions of the losses, written from the equations: Python loops, float64, full sorts, all pairs."""

import math
from itertools import permutations

from torch import Tensor


def rows(logits: Tensor) -> list[list[float]]:
    return logits.detach().double().tolist()


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def log_softmax(values: list[float]) -> list[float]:
    highest = max(values)
    log_total = highest + math.log(math.fsum(math.exp(value - highest) for value in values))
    return [value - log_total for value in values]


def kl(p: list[float], q: list[float]) -> float:
    """KL(softmax(p) ‖ softmax(q))."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    return math.fsum(math.exp(lp) * (lp - lq) for lp, lq in zip(log_p, log_q, strict=True))


def squared_error(student: Tensor, teacher: Tensor) -> float:
    """The mean of (s − t)² over all entries of two matrices; 0 of none."""
    squares = [
        (a - b) ** 2 for s, t in zip(rows(student), rows(teacher), strict=True) for a, b in zip(s, t, strict=True)
    ]
    return math.fsum(squares) / len(squares) if squares else 0.0


def relation(student: Tensor, teacher: Tensor) -> float:
    """1 − cos of the two matrices of products between the rows of each."""
    ours, theirs = (
        [math.fsum(a * b for a, b in zip(one, other, strict=True)) for one in rows(y) for other in rows(y)]
        for y in (student, teacher)
    )
    product = math.fsum(a * b for a, b in zip(ours, theirs, strict=True))
    lengths = [math.sqrt(math.fsum(value * value for value in matrix)) for matrix in (ours, theirs)]
    return 1 - product / (lengths[0] * lengths[1])


def matched(student: Tensor, teacher: Tensor) -> tuple[float, list[tuple[int, int]]]:
    """Of all ways to give each token of the smaller side a partner of its own, the one with the least sum of Manhattan distances."""
    z_s, z_t = rows(student), rows(teacher)
    few, many = min(len(z_s), len(z_t)), max(len(z_s), len(z_t))
    ways = []
    for chosen in permutations(range(many), few):
        pairs = sorted((i, j) if len(z_s) == few else (j, i) for i, j in enumerate(chosen))
        total = math.fsum(abs(a - b) for i, j in pairs for a, b in zip(z_s[i], z_t[j], strict=True))
        ways.append((total, pairs))
    return min(ways)


def affinity(student: Tensor, student_text: Tensor, teacher: Tensor, teacher_text: Tensor) -> float:
    """The mean of smooth L1 of the differences of all cosines between a visual token and a text token; 0 of none."""

    def cosine(x: list[float], y: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

    differences = [
        abs(cosine(v_s, t_s) - cosine(v_t, t_t))
        for v_s, v_t in zip(rows(student), rows(teacher), strict=True)
        for t_s, t_t in zip(rows(student_text), rows(teacher_text), strict=True)
    ]
    values = [d * d / 2 if d < 1 else d - 0.5 for d in differences]
    return math.fsum(values) / len(values) if values else 0.0


def attention_distance(student: Tensor, teacher: Tensor, without_peaks: bool) -> float:
    """Each layer of the student against the mean of its window of the teacher's layers, entry by entry; 0 of no entries."""
    student_a, teacher_a = ([[w for row in rows(layer) for w in row] for layer in maps] for maps in (student, teacher))
    window, total = len(teacher_a) - len(student_a) + 1, 0.0
    if not student_a[0]:
        return 0.0
    for number, a_s in enumerate(student_a):
        a_t = [math.fsum(ws) / window for ws in zip(*teacher_a[number : number + window], strict=True)]
        pairs = list(zip(a_s, a_t, strict=True))
        if without_peaks:
            mean = math.fsum(a_t) / len(a_t)
            limit = mean + math.sqrt(math.fsum((w - mean) ** 2 for w in a_t) / len(a_t))
            pairs = [pair for pair in pairs if pair[1] <= limit]
        product = math.fsum(a * b for a, b in pairs)
        total += 1 - product / (math.hypot(*(a for a, _ in pairs)) * math.hypot(*(b for _, b in pairs)))
    return total


def cross_entropy(logits: Tensor, targets: Tensor) -> list[float]:
    return [-log_softmax(z)[y] for z, y in zip(rows(logits), targets.tolist(), strict=True)]


def forward_kl(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    return [
        kl([v / temperature for v in t], [v / temperature for v in s])
        for s, t in zip(rows(student), rows(teacher), strict=True)
    ]


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    return forward_kl(teacher, student, temperature)


def jsd(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> list[float]:
    losses = []
    for s, t in zip(rows(student), rows(teacher), strict=True):
        p_s = softmax([v / temperature for v in s])
        p_t = softmax([v / temperature for v in t])
        loss = 0.0
        for a, b in zip(p_s, p_t, strict=True):
            mixed = beta * b + (1 - beta) * a
            loss += beta * b * math.log(b / mixed) + (1 - beta) * a * math.log(a / mixed)
        losses.append(loss)
    return losses


def order(logits: list[float]) -> list[int]:
    """All ids, the largest logit first, the lower id first among equals."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))


def knee(logits: list[float], window: int | None, min_k: int) -> int:
    """The rank, from 1, of the point furthest below the chord of the sorted, normalised window."""
    size = len(logits) if window is None else min(window, len(logits))
    curve = [logits[token] for token in order(logits)][:size]
    first, last = curve[0], curve[-1]
    if first == last:
        return min(min_k, size)
    best_rank, best_gap = 0, -math.inf
    for rank, value in enumerate(curve):
        x = rank / (size - 1)
        y = (value - last) / (first - last)
        gap = (1 - x) - y
        if gap > best_gap:
            best_rank, best_gap = rank, gap
    return min(max(best_rank + 1, min_k), size)


def differences(logits: list[float], ids: list[int], temperature: float) -> list[float]:
    """(z_i − z_j)/τ for every pair of ids, the earlier one first."""
    return [(logits[ids[i]] - logits[ids[j]]) / temperature for i in range(len(ids)) for j in range(len(ids)) if i < j]


def bild(student: Tensor, teacher: Tensor, top_k: int, temperature: float) -> list[float]:
    losses = []
    for s, t in zip(rows(student), rows(teacher), strict=True):
        loss = 0.0
        for leader in (t, s):
            ids = order(leader)[:top_k]
            loss += kl(differences(t, ids, temperature), differences(s, ids, temperature))
        losses.append(loss)
    return losses


def dbild(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    window: int | None,
    min_k: int,
    top_k: int | None = None,
    direction: str = "reverse",
    softmax: str = "all",
    t_squared: bool = False,
) -> list[float]:
    losses = []
    for s, t in zip(rows(student), rows(teacher), strict=True):
        loss = 0.0
        for leader in (t, s):
            ids = order(leader)[: knee(leader, window, min_k) if top_k is None else top_k]
            groups = [ids] if softmax == "all" else [ids[i:] for i in range(len(ids) - 1)]
            for group in groups:
                ours, theirs = differences(s, group, temperature), differences(t, group, temperature)
                if softmax == "row":  # of the group, the pairs of its first
                    ours, theirs = ours[: len(group) - 1], theirs[: len(group) - 1]
                loss += (kl(ours, theirs) if direction == "reverse" else kl(theirs, ours)) / len(groups)
        losses.append(temperature**2 * loss if t_squared else loss)
    return losses


def visual_weights(
    advantage: list[float], sample: list[int], shows: list[bool], share: float, high: float
) -> list[float]:
    """Row by row: the tokens that lose most without detail weigh `high` of the row together, the others the rest; mean 1."""
    weights = [1.0] * len(advantage)
    for row in range(len(shows)):
        places = [place for place, whose in enumerate(sample) if whose == row]
        n = len(places)
        most = next(count for count in range(n + 1) if count >= share * n - 1e-6)
        best = sorted(places, key=lambda place: (-advantage[place], place))[:most]
        chosen = [place for place in best if advantage[place] > 0]
        others = [place for place in places if place not in chosen]
        if not shows[row] or not chosen or not others:
            continue
        for place in chosen:
            weights[place] = high * n / len(chosen)
        for place in others:
            weights[place] = (1 - high) * n / len(others)
    return weights


def coarse(picture: list[list[float]], cells: tuple[int, int]) -> list[list[float]]:
    """Each pixel is the mean of the cell whose corner is nearest; the sides must be multiples of the cells."""
    height, width = len(picture), len(picture[0])
    tall, wide = height // cells[0], width // cells[1]
    made = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            top, left = y // tall * tall, x // wide * wide
            inside = [picture[a][b] for a in range(top, top + tall) for b in range(left, left + wide)]
            made[y][x] = math.fsum(inside) / len(inside)
    return made


def attention_received(attention: Tensor) -> list[float]:
    """The share of each key in the weights of all heads and queries; 0 where there are none."""
    of_keys = [0.0] * attention.shape[-1]
    for head in attention:
        for weights in rows(head):
            for key, weight in enumerate(weights):
                of_keys[key] += weight
    total = math.fsum(of_keys)
    return [value / total if total else 0.0 for value in of_keys]
