"""What does a start cost with the rows of LLaVA's fine-tuning mix: reading them, and the index over them?

python benchmarks/rows.py
python benchmarks/rows.py --rows 20000

The rows are drawn, in the mix's proportions: conversations of log-normal length, ids that several tasks share, one row in
sixteen without an image; all images are one file. The encoder counts letters, so that the index costs what is ours of it;
with --encode it is a tiny processor, which takes milliseconds for a row. The first start writes the cache, the second reads
it; each runs in a process of its own.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import RESULTS, Demand, kib, machine, report, versions

from switchkd.data.verdicts import Measured

ROWS = 665_000
#: The same image in every row: a corner of it is enough for the tiny processor.
PICTURE = "picture.png"
WORDS = (  # noqa: SIM905
    "the a of in on is are there with and to left right small large image man woman holding near table What Where How "
    "color “quoted” café 三 \n"
).split(" ")


def write_data(folder: Path, rows: int) -> Path:
    """A JSON list of `rows` rows, written row by row."""
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(folder / PICTURE)
    draw = random.Random(0)
    path = folder / "mix.json"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            has_image = draw.random() < 15 / 16
            row = {"id": f"{draw.randrange(max(1, rows // 2)):012}", "conversations": _talk(draw, has_image)}
            file.write(("[" if number == 0 else ",\n") + json.dumps(row | ({"image": PICTURE} if has_image else {})))
        file.write("]")
    return path


def _talk(draw: random.Random, has_image: bool) -> list[dict[str, str]]:
    turns = []
    for turn in range(min(20, 1 + int(draw.lognormvariate(0.9, 0.7)))):
        question = " ".join(draw.choices(WORDS, k=draw.randint(5, 20)))
        answer = " ".join(draw.choices(WORDS, k=max(1, int(draw.lognormvariate(3.2, 1.0)))))
        mark = "<image>\n" if has_image and turn == 0 else ""
        turns += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return turns


class Letters:
    """An encoder that costs nothing."""

    fingerprint = "letters"

    def fingerprint_of(self, row: dict) -> str:
        return self.fingerprint

    def measure(self, row: dict) -> Measured:
        letters = [sum(len(part["text"] or "") for part in message["content"]) for message in row["messages"]]
        return Measured(sum(letters), sum(letters[1::2]), sum(letters[1::2]), sum(letters))


class Memory(threading.Thread):
    """Watches what memory of this process is its own, mapped files left out."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_anonymous_mib = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        while True:
            self.peak_anonymous_mib = max(self.peak_anonymous_mib, kib("RssAnon") / 2**10)
            if self.over.wait(0.1):
                return


def start(path: Path, what: str, encode: bool) -> dict[str, float]:
    """One start, in this process."""
    from switchkd.data.formats import load_rows  # imports are not what is measured
    from switchkd.data.index import build_index

    encoder = Letters()
    if encode:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "lib"))
        from tiny import tiny_processor

        from switchkd.data.collate import Collator
        from switchkd.data.reader import Reader

        encoder = Collator(Reader(tiny_processor(), max_length=2048))
    imported_mib = kib("VmHWM") / 2**10
    memory = Memory()
    memory.start()
    began = time.perf_counter()
    rows = load_rows(path)
    if what == "index":
        rows = build_index(rows, encoder).rows
    seconds = time.perf_counter() - began
    first, last = rows[0], rows[len(rows) - 1]
    assert first["messages"]
    assert last["messages"]
    memory.over.set()
    memory.join()
    return {
        "rows": len(rows),
        "seconds": seconds,
        "peak_mib": kib("VmHWM") / 2**10,
        "peak_anonymous_mib": memory.peak_anonymous_mib,
        "peak_of_a_worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10,
        "imports_mib": imported_mib,
    }


def in_a_process(path: Path, what: str, cache: Path, encode: bool) -> dict[str, float]:
    flags = ["--start", what, "--data", str(path)] + ["--encode"] * encode
    process = subprocess.run(
        [sys.executable, __file__, *flags],
        env=os.environ | {"SWITCHKD_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=ROWS)
    options.add_argument("--encode", action="store_true", help="with a tiny processor")
    options.add_argument("--check", action="store_true", help="exit 1 naming what falls short of the demands")
    options.add_argument("--start", choices=["rows", "index"], help=argparse.SUPPRESS)
    options.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.start:
        print(json.dumps(start(given.data, given.start, given.encode)))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_data(Path(folder), given.rows)
        print(f"{given.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB of JSON")
        print(f"{'start':24} {'seconds':>9} {'peak':>10} {'of it own':>10} {'a worker':>10}")
        for what in ("rows", "index"):
            for turn in ("first", "second"):
                row = in_a_process(path, what, Path(folder) / "cache", given.encode)
                found.append({"benchmark": "rows", "start": turn, "what": what} | row)
                print(
                    f"{what + ', ' + turn:24} {row['seconds']:9.1f} {row['peak_mib']:6.0f} MiB {row['peak_anonymous_mib']:6.0f} MiB "
                    f"{row['peak_of_a_worker_mib']:6.0f} MiB",
                    flush=True,
                )
    RESULTS.mkdir(exist_ok=True)
    about = {"machine": machine("cpu"), "versions": versions()}
    (RESULTS / "rows.jsonl").write_text("".join(json.dumps(row | about) + "\n" for row in found))
    demands = [Demand("peak resident memory of any process [MiB]", max(
        max(row["peak_mib"], row["peak_of_a_worker_mib"]) for row in found
    ), 1024, at_least=False)]  # fmt: skip
    demands += [
        Demand(f"seconds of the second start, {row['what']}", row["seconds"], 5, at_least=False)
        for row in found
        if row["start"] == "second"
    ]
    report(demands, given.check)


if __name__ == "__main__":
    main()
