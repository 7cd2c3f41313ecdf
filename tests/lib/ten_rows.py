"""A few rows of each benchmark, typed and drawn here, in the schema of lmms-eval's data sets, with the perfect answers."""

from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image
from PIL import Image as Pillow

from switchkd.evaluate.benchmarks import BENCHMARKS
from switchkd.evaluate.benchmarks.mme import PERCEPTION

#: Row and perfect answer.
Typed = list[tuple[dict[str, Any], str]]


def picture(number: int, side: int = 24) -> dict[str, Any]:
    """A picture that no other number gives."""
    drawn = Pillow.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number % 256))
    content = BytesIO()
    drawn.save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{number}.png"}


def mme() -> Typed:
    rows: Typed = []
    for number, category in enumerate([*PERCEPTION, "code_reasoning"]):
        for answer in ("Yes", "No"):
            row = {
                "question_id": f"{category}/{number:04}.png",
                "image": picture(number),
                "question": f"Is this picture {answer} {number}? Please answer yes or no.",
                "answer": answer,
                "category": category,
            }
            rows.append((row, answer))
    return rows


def mmbench() -> Typed:
    rows: Typed = []
    questions = [("What is drawn?", ("cat", "dog", "house", "tree"), 2), ("Is it day?", ("yes", "no"), 0)]
    for number, (question, options, right) in enumerate(questions, start=7):
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            letter = "ABCD"[turned.index(options[right])]
            row = {
                "index": 1_000_000 * turn + number,
                "question": question,
                # as they come out of a table: the text "nan"
                "hint": "nan" if number == 7 else "It was taken outside.",
                "answer": letter,
                **{name: turned[i] if i < len(turned) else "nan" for i, name in enumerate("ABCD")},
                "category": "identity",
                "L2-category": "coarse perception",
                "source": "typed",
                "split": "dev",
                "image": picture(number),
            }
            rows.append((row, letter))
    return rows


def vqav2() -> Typed:
    rows: Typed = []
    for number, answers in enumerate([["red"] * 10, ["2"] * 4 + ["3"] * 6, ["yes"] * 10]):
        people = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, start=1)]
        row = {"question_id": number, "question": "Which?", "answers": people, "image": picture(number)}
        rows.append((row | {"multiple_choice_answer": answers[-1]}, answers[-1]))
    return rows


def gqa() -> Typed:
    answers = ["left", "traffic light"]
    return [
        (
            {"id": str(n), "imageId": f"n{n}", "image": picture(n), "question": f"Where is {n}?", "answer": answer},
            answer,
        )
        for n, answer in enumerate(answers)
    ]


def scienceqa() -> Typed:
    rows: Typed = []
    for number, (choices, right) in enumerate([(["solid", "liquid", "gas"], 1), (["north", "south"], 0)]):
        row = {"image": picture(number), "question": "Which one?", "choices": choices, "answer": right, "hint": ""}
        rows.append((row, "ABC"[right]))
    return rows


def mmmu() -> Typed:
    images = [f"image_{number}" for number in range(1, 8)]

    def row(number: int, subject: str, question: str, options: list[str], answer: str, count: int) -> dict[str, Any]:
        shown = {name: picture(10 * number + i) if i < count else None for i, name in enumerate(images)}
        kind = "multiple-choice" if options else "open"
        return {
            "id": f"validation_{subject}_{number}",
            "question": question,
            "options": repr(options),
            "answer": answer,
            "question_type": kind,
            **shown,
        }

    several = "Compare <image 2> with <image 1>. Which follows?"
    return [
        (row(1, "Math", "What does <image 1> show?", ["a line", "a circle", "a square", "a cone"], "B", 1), "B"),
        (row(2, "Math", several, ["<image 3>", "<image 1>", "none"], "A", 3), "A"),
        (row(3, "Art", "How long is the side in <image 1>?", [], "12.5", 1), "12.5"),
        (row(4, "Art", "Name the colour of <image 1>.", [], "['ultramarine', 'deep blue']", 1), "deep blue"),
    ]


def textvqa() -> Typed:
    rows: Typed = []
    for number, answer in enumerate(["stop", "Route 66"]):
        row = {"image_id": f"t{number}", "question_id": number, "question": "what does the sign say?"}
        row |= {"image": picture(number), "answers": [answer] * 10, "ocr_tokens": [answer, "SPEED"]}
        rows.append((row, answer))
    return rows


def vizwiz() -> Typed:
    rows: Typed = []
    for number, answer in enumerate(["unanswerable", "a can of soup"]):
        row = {"question_id": f"VizWiz_val_{number}", "image": picture(number), "question": "what is this?"}
        rows.append((row | {"answers": [answer] * 8 + ["other", "blue"], "category": "other"}, answer))
    return rows


def pope() -> Typed:
    rows: Typed = []
    for number, category in enumerate(("adversarial", "popular", "random")):
        for answer in ("yes", "no"):
            row = {"id": str(len(rows)), "question_id": str(number), "question": f"Is there a dog ({answer})?"}
            row |= {"answer": answer, "image_source": "typed", "image": picture(number), "category": category}
            rows.append((row, answer))
    return rows


def ai2d() -> Typed:
    rows: Typed = []
    for number, (options, right) in enumerate([(["root", "stem", "leaf", "flower"], 2), (["fox", "hare"], 0)]):
        row = {"image": picture(number), "question": "What does the arrow show?", "options": options}
        rows.append((row | {"answer": str(right)}, "ABCD"[right]))
    return rows


TYPED: dict[str, Typed] = {
    "mme": mme(), "mmbench_en": mmbench(), "mmbench_cn": mmbench(), "vqav2": vqav2(), "gqa": gqa(),
    "scienceqa": scienceqa(), "mmmu": mmmu(), "textvqa": textvqa(), "vizwiz": vizwiz(), "pope": pope(), "ai2d": ai2d(),
}  # fmt: skip


def write(folder: Path, name: str, rows: list[dict[str, Any]] | None = None) -> Path:
    """The rows of a benchmark as `folder/NAME.parquet`, images inside, as `datasets` writes them."""
    rows = [row for row, _ in TYPED[name]] if rows is None else rows
    plain = Dataset.from_list([{k: v for k, v in row.items() if k not in BENCHMARKS[name].images} for row in rows])
    features = Features({**plain.features, **{image: Image() for image in BENCHMARKS[name].images if image in rows[0]}})
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def perfect(folder: Path) -> dict[str, str]:
    """The perfect answer to each row, by what messages call it."""
    return {
        f"{folder / f'{name}.parquet'}, row {number}": answer
        for name, typed in TYPED.items()
        for number, (_, answer) in enumerate(typed)
    }
