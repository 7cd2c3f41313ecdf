"""Figures 5, 6 and 7: bad samples, numbers that are not finite, and pictures that are bombs."""

import io
import json
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_runs import STAGE, KilledRun, undisturbed, write_recipe
from lives import Nursery, Trouble, in_a_fork
from PIL import Image

from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows


def spoil(file: Path, number: int, draw: random.Random) -> str:
    """Make a picture one that cannot be read, in one of seven ways."""
    content = file.read_bytes()
    ways: dict[str, bytes | None] = {
        "cut off": content[: len(content) // 2],
        "empty": b"",
        "missing": None,
        "text": b"<html>404 Not Found</html>",
        "zeros": bytes(len(content)),
        "head only": content[:33],
        "broken inside": content[:45] + draw.randbytes(len(content) - 45),
    }
    way = list(ways)[number % len(ways)]
    if ways[way] is None:
        file.unlink()
    else:
        file.write_bytes(ways[way] or b"")
    return way


@pytest.mark.long
def test_five_percent_of_bad_pictures(tmp_path, figure, whole):
    count = 1000 if whole else 40
    bad = count // 20
    recipe = write_recipe(tmp_path, rows=count, max_steps=3)
    draw, ways = random.Random(1), Counter()
    numbers = sorted(draw.sample(range(count), bad))
    for place, number in enumerate(numbers):
        ways[spoil(tmp_path / "data" / "images" / f"train-{number}.png", place, draw)] += 1
    with Nursery(recipe) as nursery:
        life = nursery.live(("--data.max-bad-fraction", "0.05"))
        assert life.exit_code == 0, life.error
        listed = json.loads((tmp_path / "run" / STAGE / "rows.json").read_text())
        assert [row["id"] for row in listed["bad"]] == [f"train-{number}" for number in numbers]
        assert (listed["rows"], listed["kept"]) == (count, count - bad)
        life = nursery.live(("--train.output", str(tmp_path / "other"), "--data.max-bad-fraction", "0.049"))
        assert life.exit_code == 1
        assert f"{bad} of {count} samples (5.0%) are unusable, more than the allowed 4.9%" in str(life.error)
        assert not life.of("batch")
    figure(
        "5. bad pictures",
        f"{bad} of {count} rows: " + ", ".join(f"{n} {way}" for way, n in sorted(ways.items())),
        f"trained to the end, exactly {bad} logged by id; refused where 4.9 % are allowed",
    )


def test_a_truncated_json_lines_file_names_the_line(tmp_path, figure):
    lines = [
        json.dumps({"id": str(n), "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]})
        for n in range(20)
    ]
    cuts = random.Random(2).sample(range(5, len(lines[0]) - 1), 20)
    for number, cut in enumerate(cuts):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("\n".join([*lines[:number], lines[number][:cut]]))
        with pytest.raises(DataError, match=rf"{file.name}.*\bline {number + 1}\b"):
            load_rows(str(file))
    figure("5. cut JSON lines", "20 files, cut in another line each", "20 of 20 named by file and line")


@pytest.mark.long
def test_not_finite_at_random_steps(tmp_path, figure, whole):
    wanted, draw, where = 20 if whole else 2, random.Random(6), Counter()
    with Nursery(write_recipe(tmp_path, max_steps=12, save_steps=3)) as nursery:
        reference = undisturbed(nursery, tmp_path / "undisturbed")
        for number in range(wanted):
            step, kind = draw.randint(1, 12), ("loss", "gradient")[number % 2]
            run = KilledRun(nursery, tmp_path / f"run-{number}", reference)
            life = run.live(trouble=Trouble(not_finite=(step, kind)))
            assert life.of("poisoned") == [(kind, step)]
            assert life.exit_code == 1
            assert f"step {step}" in str(life.error)
            assert "finite" in str(life.error)
            assert not life.of("update")
            ((moved, of),) = life.of("moved")
            assert (moved, of > 10) == (0, True)
            assert max((saved for _, saved in life.acknowledged), default=0) == (step - 1) // 3 * 3
            where[kind] += 1
            run.live()  # and without the trouble it goes on
            assert run.finished
    figure(
        "6. not finite",
        f"{wanted} random steps: {where['loss']} in the loss, {where['gradient']} in the gradient",
        f"{wanted} stopped with an error that names the step, 0 updates applied, 0 saved, all resumed to the same bits",
    )


def png(width: int, height: int, *, bits: int = 1, colour: int = 0) -> bytes:
    """A PNG of zeros: a few kilobytes for any number of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = bytes(1 + (width * bits * (3 if colour == 2 else 1) + 7) // 8)
    packed = zlib.compressobj(9)
    rows = b"".join([*(packed.compress(row) for _ in range(height)), packed.flush()])
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def claimed(kind: str) -> bytes:
    """A small picture whose head says that it is 30,000 x 30,000."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    huge = 30_000
    if kind == "BMP":
        content[18:26] = struct.pack("<ii", huge, huge)
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", huge, huge)
    elif kind == "PPM":
        content = bytearray(content.replace(b"8 8", b"30000 30000"))
    elif kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", huge, huge)
    else:
        raise AssertionError(kind)
    return bytes(content)


def bombs() -> dict[str, bytes]:
    made = {
        f"PNG, {width} x {height}": png(width, height)
        for width, height in [(9000, 9000), (30_000, 30_000), (100_000, 600)]
    }
    made["PNG in colour, 7200 x 7200"] = png(7200, 7200, bits=8, colour=2)
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "TIFF", compression="group4")
    made["TIFF, 9000 x 9000"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.new("RGB", (7200, 7200)).save(buffer, "WEBP", quality=1, method=0)
    made["WEBP, 7200 x 7200"] = buffer.getvalue()
    return made | {f"{kind} that claims 30000 x 30000": claimed(kind) for kind in ("BMP", "GIF", "PPM", "JPEG")}


def open_bombs(tell: Callable[..., None], folder: str) -> None:
    """In a process of its own: what is said of each file, and by how much the memory grew."""
    from switchkd.data.errors import SampleError
    from switchkd.data.images import open_image

    def peak_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use
    before = peak_kib()
    for file in sorted(Path(folder).iterdir()):
        for image in ({"path": str(file), "bytes": None}, {"path": None, "bytes": file.read_bytes()}):
            try:
                open_image(image)
            except SampleError as error:
                tell("refused", file.name, str(error))
            else:
                tell("opened", file.name, "")
    tell("grown", (peak_kib() - before) / 1024)


@pytest.mark.long
def test_bombs_are_refused_before_they_are_decoded(tmp_path, figure):
    folder = tmp_path / "bombs"
    folder.mkdir()
    largest = 0
    for name, content in bombs().items():
        (folder / name.replace(" ", "-").replace(",", "")).write_bytes(content)
        largest = max(largest, len(content))
    said: list[tuple[Any, ...]] = in_a_fork(open_bombs, str(folder))
    refused = [words for words in said if words[0] == "refused"]
    assert len(refused) == 2 * len(bombs())
    assert all(re.search(r"pixels, limit 50,000,000|pixels\) exceeds limit of", words[2]) for words in refused), refused
    (grown,) = [words[1] for words in said if words[0] == "grown"]
    assert grown < 300
    figure(
        "7. picture bombs",
        f"{len(bombs())} files of at most {largest / 1024:.0f} KiB, by path and by bytes",
        f"{len(refused)} of {len(refused)} refused by their number of pixels, memory grew by {grown:.0f} MiB (300 allowed)",
    )
