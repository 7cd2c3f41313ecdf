import json
import os
import socket
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_processor
from transformers import CLIPImageProcessorPil

from switchkd.data.errors import SampleError
from switchkd.data.formats import load_rows
from switchkd.data.images import image_path, open_image, open_images
from switchkd.data.reader import Reader

REFUSED = [
    "../secret.png", "a/../../secret.png", "a/..", "..", "./../secret.png", "a/b/../../../secret.png", " ../secret.png",
    ".. /secret.png", "a/ ../../secret.png", "....//../secret.png",
    "/etc/passwd", "//server/share/x.png", "///etc/passwd", " /etc/passwd", "/proc/self/environ", "/dev/zero", "/",
    "~/x.png", "~root/x.png", "~",
    "C:/x.png", "C:x.png", "c:\\x.png", "\\\\server\\share", "..\\secret.png", "a\\..\\..\\secret.png", "\\etc\\passwd",
    "file:///etc/passwd", "file:/etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd", " file:///etc/passwd",
    "http://127.0.0.1/x.png", "https://127.0.0.1/x.png", "HTTP://127.0.0.1/x.png", "http:/127.0.0.1/x.png",
    "ftp://127.0.0.1/x", "s3://bucket/x", "gs://bucket/x", "hf://datasets/x/y", "zip://x.png::http://127.0.0.1/a.zip",
    "data:image/png;base64,AAAA", "pipe:cat /etc/passwd", "javascript:0",
    "a.png\0", "a.png\0.jpg", "../\0", "a\n.png", "a\r.png", "\x1b[31m.png", "a\x7f.png",
    "%2e%2e/secret.png", "%2e%2e%2fsecret.png", "..%2fsecret.png", "%252e%252e/secret.png", "%2fetc%2fpasswd", "a%00.png",
    "．．/secret.png", "‥/secret.png", "..／secret.png", "ｆｉｌｅ:///etc/passwd",
    "", " ", ".", "./", "\ud800.png", "out/secret.png", "out_file.png", "chain.png", "loop/../../secret.png",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    Image.new("RGB", (2, 2)).save(outside / "secret.png")
    Image.new("RGB", (2, 2)).save(root / "a" / "ok.png")
    (root / "out").symlink_to(outside)
    (root / "out_file.png").symlink_to(tmp_path / "secret.png")
    (root / "chain.png").symlink_to(root / "out_file.png")
    (root / "inside.png").symlink_to(root / "a" / "ok.png")
    return root


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_there_are_enough_cases():
    assert len(set(REFUSED)) >= 50


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_paths_that_lead_out_are_refused_and_never_opened(folder, monkeypatch, name):
    def refuse(*_, **__):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(SampleError, match="image path"):
        image_path(folder, name)


@pytest.mark.parametrize(
    "name",
    [
        "frame12:30.png",
        "12:30.png",
        "a/scene:1.png",
        "scene1:shot2.jpg",
        "a/ok.png",
        "./a/ok.png",
        "a//ok.png",
        "a/not yet.png",
        "100%25.png",
        "a/...png",
    ],
)
def test_ordinary_names_lie_below_the_root(folder, name):
    assert image_path(folder, name).is_relative_to(folder.resolve())


def test_links_that_stay_inside_are_followed(folder):
    assert image_path(folder, "inside.png") == (folder / "a" / "ok.png").resolve()


@pytest.mark.usefixtures("no_network")
def test_a_data_file_full_of_bad_paths_loads_without_one_of_them(folder):
    path = folder / "data.json"
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    path.write_text(json.dumps([{"image": name, "conversations": talk} for name in REFUSED]))
    rows = load_rows(path)
    assert [row["id"] for row in rows if row["problem"] is None] == []
    assert {row["images"][0]["path"] for row in rows} == {None}


def png_declaring(width: int, height: int) -> bytes:
    """A valid black-and-white PNG: a few kilobytes whatever its size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(bytes(1 + (width + 7) // 8) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def test_a_pixel_bomb_is_refused_before_it_is_decoded(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_declaring(9000, 9000))
    assert bomb.stat().st_size < 20_000
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before_mib = peak_mib()
    for image in ({"bytes": None, "path": str(bomb)}, {"bytes": bomb.read_bytes(), "path": None}):
        with pytest.raises(SampleError, match=r"9000 x 9000 = 81,000,000 pixels, limit 50,000,000"):
            open_image(image)
    assert peak_mib() - before_mib < 20


def test_the_pixel_limit_is_inclusive():
    image = {"bytes": png_declaring(30, 20), "path": None}
    assert open_image(image, max_pixels=600).size == (30, 20)
    with pytest.raises(SampleError, match="limit 599"):
        open_image(image, max_pixels=599)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_usual_mode_becomes_rgb(mode):
    buffer = BytesIO()
    Image.new("RGB", (4, 3), "red").convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    image = open_image({"bytes": buffer.getvalue(), "path": None})
    assert (image.mode, image.size) == ("RGB", (4, 3))


def test_images_are_turned_upright_as_their_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, "JPEG", exif=exif)
    assert open_image({"bytes": buffer.getvalue(), "path": None}).size == (3, 4)


def test_palettes_with_transparency_need_no_warning():
    buffer = BytesIO()
    Image.new("P", (4, 3)).save(buffer, "PNG", transparency=b"\x00\x80")
    assert open_image({"bytes": buffer.getvalue(), "path": None}).mode == "RGB"


def unreadable(tmp_path):
    noise = BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "PNG")
    deep = BytesIO()
    Image.new("I;16", (4, 4)).save(deep, "PNG")
    (tmp_path / "folder.png").mkdir()
    return {
        "missing": ({"bytes": None, "path": str(tmp_path / "none.png")}, "is missing"),
        "folder": ({"bytes": None, "path": str(tmp_path / "folder.png")}, "not a regular file"),
        "truncated": ({"bytes": noise.getvalue()[:1000], "path": None}, "cannot be read"),
        "flipped": ({"bytes": noise.getvalue().replace(b"IDAT", b"IDAX"), "path": None}, "cannot be read"),
        "text": ({"bytes": b"<html>404</html>", "path": None}, "cannot be read: it is no picture in one of PNG, JPEG"),
        "empty": ({"bytes": b"", "path": None}, "cannot be read"),
        "postscript": ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "path": None}, "cannot be read"),
        "16 bits": ({"bytes": deep.getvalue(), "path": None}, "not 8 bits per channel"),
        "nothing": ({"bytes": None, "path": None}, "neither bytes nor a path"),
    }


@pytest.mark.parametrize(
    "case", ["missing", "folder", "truncated", "flipped", "text", "empty", "postscript", "16 bits", "nothing"]
)
def test_unreadable_images_say_why(tmp_path, case):
    image, message = unreadable(tmp_path)[case]
    with pytest.raises(SampleError, match=message):
        open_image(image)


def transparent(mode):
    """Half of a picture is red, the other is transparent, and black below it."""
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 2, 2))
    if mode == "P":
        return picture.quantize(4)
    if mode == "RGB":
        picture = picture.convert("RGB")
        picture.info["transparency"] = (0, 0, 0)
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_is_white(mode):
    buffer = BytesIO()
    picture = transparent(mode)
    picture.save(
        buffer, "PNG", **({"transparency": picture.info["transparency"]} if "transparency" in picture.info else {})
    )
    image = open_image({"bytes": buffer.getvalue(), "path": None})
    red = (76, 76, 76) if mode == "LA" else (255, 0, 0)
    assert [image.getpixel((x, 1)) for x in range(4)] == [red, red, (255, 255, 255), (255, 255, 255)]


def test_what_is_half_transparent_is_mixed_with_white():
    buffer = BytesIO()
    Image.new("RGBA", (1, 1), (0, 0, 255, 51)).save(buffer, "PNG")
    assert open_image({"bytes": buffer.getvalue(), "path": None}).getpixel((0, 0)) == (204, 204, 255)


def rows_of(folder, *names):
    path = folder / "rows.json"
    talk = [{"from": "human", "value": "<image>" * len(names)}, {"from": "gpt", "value": "x"}]
    path.write_text(json.dumps([{"id": "r", "image": list(names), "conversations": talk}]))
    return load_rows(path)[0]


SWAPS = {
    "the file by a link": lambda root, outside: (
        (root / "a" / "ok.png").unlink(),
        (root / "a" / "ok.png").symlink_to(outside),
    ),
    "its folder by a link": lambda root, outside: (
        (root / "a").rename(root / "old"),
        (root / "a").symlink_to(outside.parent),
    ),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_a_picture_that_is_swapped_for_a_link_after_the_check_is_not_read(folder, swap):
    row = rows_of(folder, "a/ok.png")
    reader = Reader(tiny_processor())
    reader.encode(row)
    secret = folder.parent / "outside" / "ok.png"
    (folder.parent / "outside" / "secret.png").rename(secret)
    swap(folder, secret)
    for read in (lambda: reader.encode(row), lambda: open_image(row["images"][0])):
        with pytest.raises(SampleError, match="leads elsewhere through a symbolic link"):
            read()


def test_a_picture_that_is_swapped_while_it_is_opened_is_not_read(folder, monkeypatch):
    path, secret, opened = folder / "a" / "ok.png", folder.parent / "secret.png", os.open

    def swapping(name, flags):
        target = secret if name == str(path) else name  # what a link gives that is there for this moment alone
        return opened(target, flags)

    row = rows_of(folder, "a/ok.png")
    monkeypatch.setattr(os, "open", swapping)
    with pytest.raises(SampleError, match="leads elsewhere"):
        open_image(row["images"][0])


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(SampleError, match="not a regular file"):
        open_image({"bytes": None, "path": str(folder / "pipe.png")})


def test_the_pixels_of_a_row_are_counted_together():
    images = [{"bytes": png_declaring(30, 20), "path": None}] * 4
    assert [image.size for image in open_images(images, max_pixels=2400)] == [(30, 20)] * 4
    with pytest.raises(
        SampleError,
        match=r"3 of 4 \(f, row 7\) declares 30 x 20, and with the images before .* 1,800 pixels, limit 1,799",
    ):
        open_images(images, max_pixels=1799, source="f, row 7")


def shortest_edge_reader(**limits):
    processor = tiny_processor()
    crop = {"height": 32, "width": 32}
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop)
    return Reader(processor, **limits)


def narrow(*sizes):
    content = [{"type": "image", "text": None} for _ in sizes]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]
    return {
        "id": "r",
        "images": [{"bytes": png_declaring(*size), "path": None} for size in sizes],
        "messages": messages,
    }


@pytest.mark.parametrize("sizes", [[(1, 8000)], [(8000, 1)], [(4, 5000)] * 20])
def test_pixels_are_counted_as_the_processor_makes_them(sizes):
    """A PNG of 1 x 8000 pixels and a shortest edge of 336 are 903 million pixels."""
    reader = shortest_edge_reader(max_pixels=4_000_000)
    assert reader.encode(narrow((1, 50), (64, 48))).answers
    with pytest.raises(
        SampleError, match=r"'r': .*the processor makes [\d,]+ pixels of .*, limit 4,000,000 \(data.max_pixels\)"
    ):
        reader.encode(narrow(*sizes))


def test_a_large_picture_is_in_memory_once(tmp_path):
    """One of 25 megapixels is 72 MiB: with a second copy it would be 144."""
    path = tmp_path / "large.png"
    path.write_bytes(png_declaring(5000, 5000))
    with Image.open(path) as picture:
        picture.convert("RGB").save(path)
    Path("/proc/self/clear_refs").write_text("5")
    before_mib = peak_mib()
    assert open_image({"bytes": None, "path": str(path)}).size == (5000, 5000)
    assert peak_mib() - before_mib < 110


@pytest.mark.parametrize("where", ["switchkd.data.images._decoded", "transformers.LlavaProcessor.__call__"])
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_no_memory_for_a_row_is_told_from_a_broken_picture(monkeypatch, where, error):
    if isinstance(error, RuntimeError) and where.endswith("_decoded"):
        return  # Pillow has an error of its own

    def fail(*_, **__):
        raise error

    reader = Reader(tiny_processor())
    monkeypatch.setattr(where, fail)
    with pytest.raises(MemoryError):
        reader.encode(narrow((30, 20)))
