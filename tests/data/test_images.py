import socket
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from switchkd.data.errors import SampleError
from switchkd.data.formats import load_rows
from switchkd.data.images import image_path, open_image

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


@pytest.mark.parametrize("name", ["a/ok.png", "./a/ok.png", "a//ok.png", "a/not yet.png", "100%25.png", "a/...png"])
def test_ordinary_names_lie_below_the_root(folder, name):
    assert image_path(folder, name).is_relative_to(folder.resolve())


def test_links_that_stay_inside_are_followed(folder):
    assert image_path(folder, "inside.png") == (folder / "a" / "ok.png").resolve()


@pytest.mark.usefixtures("no_network")
def test_a_data_file_full_of_bad_paths_loads_without_one_of_them(folder):
    import json

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
        "text": ({"bytes": b"<html>404</html>", "path": None}, "cannot be read: UnidentifiedImageError"),
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
