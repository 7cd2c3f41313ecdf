"""Rows with videos: what people write, what is opened of it, and what is refused. Nothing here needs a decoder but what says so."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_videos import frames, png, video, write_clip

from switchkd.data.errors import MissingDecoderError, SampleError
from switchkd.data.formats import load_rows
from switchkd.data.llava_rows import write_llava
from switchkd.data.verdicts import row_key
from switchkd.data.video_sampling import VideoSampling, sampling_of, use_sampling
from switchkd.data.videos import open_videos

EVEN = VideoSampling(fps=2, max_frames=4)


def talk(question="<video>\nWhat happens?", **more):
    return {
        "id": "7",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "It rains."}],
        **more,
    }


def chat(*content, **more):
    messages = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "It rains."}]
    return {"id": "7", "messages": messages, **more}


def loaded(folder, row):
    (folder / "data.json").write_text(json.dumps([row]))
    return load_rows(folder / "data.json")[0]


def kinds(row):
    return [part["type"] for part in row["messages"][0]["content"]]


def stored(path):
    return {"bytes": None, "path": str(path), "frames": []}


def listed(*paths):
    return {"bytes": None, "path": None, "frames": [{"bytes": None, "path": str(path)} for path in paths]}


TEXT = {"type": "text", "text": "What happens?"}
PICTURES = ["f/1.png", "f/2.jpg"]
#: What is written → the videos and the parts of the question that become of it.
FORMS = {
    "a file": (talk(video="a.mp4"), ["a.mp4"], ["video", "text"]),
    "a file in a list": (talk(video=["a.mp4"]), ["a.mp4"], ["video", "text"]),
    "several": (
        talk("<video>\n<video>\nAlike?", videos=["a.mp4", "b.webm"]),
        ["a.mp4", "b.webm"],
        ["video", "video", "text"],
    ),
    "several under video": (
        talk("<video>Or <video>", video=["a.mp4", "b.mp4"]),
        ["a.mp4", "b.mp4"],
        ["video", "text", "video"],
    ),
    "its frames": (talk(video=PICTURES), [PICTURES], ["video", "text"]),
    "lists of frames": (
        talk("<video><video>", videos=[PICTURES, PICTURES[:1]]),
        [PICTURES, PICTURES[:1]],
        ["video", "video"],
    ),
    "a folder": (talk(video="f"), ["f"], ["video", "text"]),
    "a part that carries it": (chat({"type": "video", "video": "a.mp4"}, TEXT), ["a.mp4"], ["video", "text"]),
    "a part that carries its frames": (chat({"type": "video", "video": PICTURES}, TEXT), [PICTURES], ["video", "text"]),
    "a part with a path": (chat({"type": "video", "path": "a.mp4"}, TEXT), ["a.mp4"], ["video", "text"]),
    "OpenAI's part": (chat({"type": "video_url", "video_url": {"url": "a.mp4"}}, TEXT), ["a.mp4"], ["video", "text"]),
    "parts by their places": (chat(TEXT, {"type": "video"}, videos=["a.mp4"]), ["a.mp4"], ["text", "video"]),
    "parts by their numbers": (
        chat({"type": "video", "index": 1}, {"type": "video", "index": 0}, TEXT, videos=["a.mp4", "b.mp4"]),
        ["b.mp4", "a.mp4"],
        ["video", "video", "text"],
    ),
    "columns": ({"id": "7", "question": "What?", "answer": "Rain.", "video": "a.mp4"}, ["a.mp4"], ["video", "text"]),
    "null": ({"id": "7", "question": "What?", "answer": "Rain.", "video": {"path": None}}, [], ["text"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_in_which_videos_are_written(name, tmp_path):
    row, videos, parts = FORMS[name]
    found = loaded(tmp_path, row)
    assert found["problem"] is None
    paths = [[tmp_path / one for one in names] if isinstance(names, list) else tmp_path / names for names in videos]
    assert found["videos"] == [listed(*one) if isinstance(one, list) else stored(one) for one in paths]
    assert kinds(found) == parts


def test_pictures_and_videos_of_a_row_keep_their_places(tmp_path):
    found = loaded(
        tmp_path, talk("<video> and <image>\nand `<video>`, <video>", image="a.png", videos=["a.mp4", "b.mp4"])
    )
    assert kinds(found) == ["video", "text", "image", "text", "video"]
    assert [part["text"] for part in found["messages"][0]["content"]] == [None, " and ", None, "and `<video>`, ", None]


BAD = {
    "an address": (talk(video="https://a/b.mp4"), r"video 1 of 1: video path 'https://a/b.mp4' is a URL"),
    "a parent folder": (talk(video="../a.mp4"), "video path '../a.mp4' names a parent folder"),
    "elsewhere": (talk(video="/etc/a.mp4"), "is not relative, nor in that folder"),
    "a frame elsewhere": (
        talk(video=["../a.png", "b.png"]),
        "frame 1 of 2: frame path '../a.png' names a parent folder",
    ),
    "one picture": (talk(video="a.png"), "its video 'a.png' is one picture: list all its frames, or name a video file"),
    "frames and a file": (talk(videos=[["a.png", "b.mp4"]]), "must hold its frames, each a picture .*not 'b.mp4'"),
    "both keys": (talk(video="a.mp4", videos=["a.mp4"]), "has both `video` and `videos`; keep one"),
    "a number": (talk(video=3), "a video must be a path, bytes, .* not 3"),
    "one mark too few": (talk(videos=["a.mp4", "b.mp4"]), r"1 video marks \(<video>\) but 2 videos"),
    "a mark without a video": (talk(), "holds <video>, and the row has no video: name it under `video`"),
    "another mark": (
        talk("<video><|video_pad|>", video="a.mp4"),
        r"holds <\|video_pad\|>; mark each video with <video>",
    ),
    "two places": (
        chat({"type": "video", "video": "a.mp4"}, TEXT, videos=["a.mp4"]),
        "has videos in its turns and others",
    ),
    "two contents": (
        chat({"type": "video", "video": "a.mp4", "path": "b.mp4"}, TEXT),
        "carries `video` and `path`; keep one",
    ),
    "in an answer": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "video"}]}]},
        "assistant turn has a part of type 'video'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_file_row_and_id(name, tmp_path):
    row, message = BAD[name]
    (tmp_path / "data.json").write_text(json.dumps([row, talk("Hi")]))
    problem = load_rows(tmp_path / "data.json")[0]["problem"]
    assert re.search(message, problem), problem
    assert problem.startswith(f"{tmp_path / 'data.json'}, line 1, row 0 (id '{row.get('id', 0)}'): ")


def written(folder, count, suffix="png", **size):
    folder.mkdir()
    for number, pixels in enumerate(frames(count, **size)):
        Image.fromarray(pixels).save(folder / f"frame_{number}.{suffix}")
    return folder


def test_a_folder_is_its_frames_in_the_order_of_their_numbers(tmp_path):
    (seen,) = open_videos([stored(written(tmp_path / "f", 12))], sampling=VideoSampling(max_frames=12))
    assert np.array_equal(seen.frames, frames(12))  # frame_2 before frame_10


@pytest.mark.parametrize(
    ("count", "sampling", "places"),
    [
        (1, EVEN, [0]),
        (4, EVEN, [0, 1, 2, 3]),
        (10, EVEN, [0, 3, 6, 9]),
        (10, VideoSampling(max_frames=1), [0]),
    ],
)
def test_frames_of_a_list_are_all_seen_or_evenly_as_many_as_there_may_be(count, sampling, places):
    (seen,) = open_videos([video(count)], sampling=sampling)
    assert seen.metadata.frames_indices == places
    assert np.array_equal(seen.frames, frames(count)[places])
    assert (seen.metadata.fps, seen.metadata.total_num_frames) == (sampling.fps, count)


@pytest.mark.parametrize(
    ("frames_and_fps", "sampling", "count"),
    [
        ((300, 30), VideoSampling(2, 32), 20),  # ten seconds
        ((300, 30), VideoSampling(2, 8), 8),
        ((300, 30), VideoSampling(0.01, 8), 1),
        ((300, 30), VideoSampling(0.01, 8, min_frames=4), 4),
        ((3, 30), VideoSampling(2, 32, min_frames=4), 3),
        ((5, 1), VideoSampling(100, 32), 5),
    ],
)
def test_as_many_frames_of_each_second_as_there_may_be(frames_and_fps, sampling, count):
    places = sampling.places(*frames_and_fps)
    assert len(places) == count
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] == (frames_and_fps[0] - 1 if count > 1 else 0)


def test_sampling_is_what_is_given_else_the_processors_else_two_of_a_second():
    class Settings:
        fps, num_frames, min_frames = 1, 64, 4

    assert sampling_of(None) == VideoSampling(2, 32, 1)
    assert sampling_of(Settings()) == VideoSampling(1, 64, 4)
    assert sampling_of(Settings(), 3, 2) == VideoSampling(3, 2, 2)
    settings = Settings()
    use_sampling(settings, 3, 2)  # as it is saved with a student
    assert sampling_of(settings) == VideoSampling(3, 2, 2)


REFUSED = {
    "missing": (lambda folder: stored(folder / "a.mp4"), "video '.*a.mp4' is missing"),
    "no frames": (lambda folder: stored(written(folder / "f", 0)), "is a folder with 0 frames"),
    "unequal frames": (
        lambda folder: {"bytes": None, "path": None, "frames": [*video(2)["frames"], png(frames(1, 8, 8)[0])]},
        "video of 3 frames.*: frame 3 of 3 is 8 x 8 pixels, the first 24 x 16",
    ),
    "a broken frame": (
        lambda folder: {"bytes": None, "path": None, "frames": [*video(1)["frames"], {"bytes": b"no", "path": None}]},
        "of its 2 frames, embedded image cannot be read",
    ),
    "a large frame": (lambda folder: video(1, height=40, width=40), "40 x 40 = 1,600 pixels, limit 1,000"),
    "many frames": (
        lambda folder: video(20),
        "20 frames of 24 x 16 are seen of it, 7,680 pixels, and 4,000 are left",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_videos_that_cannot_be_read_are_named(name, tmp_path):
    pytest.importorskip("av") if name == "missing" else None
    make, message = REFUSED[name]
    with pytest.raises(SampleError, match=message):
        open_videos([make(tmp_path)], sampling=VideoSampling(max_frames=64), max_pixels=1000, source="data.json, row 3")


def test_what_videos_of_a_row_may_have_is_shared():
    with pytest.raises(SampleError, match="video of 8 frames 2 of 2"):
        open_videos([video(8), video(8)], sampling=EVEN, max_pixels=500)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    written(tmp_path / "elsewhere", 1)
    folder = written(tmp_path / "f", 1)
    (folder / "frame_1.png").symlink_to(tmp_path / "elsewhere" / "frame_0.png")
    with pytest.raises(SampleError, match="leads elsewhere through a symbolic link"):
        open_videos([stored(folder)], sampling=EVEN)


def test_without_a_decoder_a_file_ends_it_all_and_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(
        MissingDecoderError, match=r"a.mp4' is decoded by the package `av`.*pip install 'switchkd\[video\]'"
    ):
        open_videos([stored(tmp_path / "a.mp4")], sampling=EVEN)


def test_the_key_of_a_row_changes_with_every_frame(tmp_path):
    def key(video):
        return row_key({"id": "7", "messages": [], "kinds": [], "images": [], "videos": video and [video]}, "reader")

    folder = written(tmp_path / "f", 2)
    keys = [key(None), key(stored(folder)), key(video(2)), key(video(3))]
    Image.fromarray(frames(1)[0]).save(folder / "frame_9.png")
    keys.append(key(stored(folder)))
    assert len(set(keys)) == 5
    assert key(stored(folder)) == keys[-1]


# ---- clips, where PyAV is installed


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve frames of one colour each, four in a second, without loss: an .mp4, a .mkv, which does not say how many, and an .avi."""
    folder = tmp_path_factory.mktemp("clips")
    for suffix in ("mp4", "mkv", "avi"):
        write_clip(folder / f"a.{suffix}")
    return folder


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_clip_is_decoded_where_the_sampling_says(clip, suffix, inside):
    path = clip / f"a.{suffix}"
    one = {"bytes": path.read_bytes(), "path": None, "frames": []} if inside else stored(path)
    (seen,) = open_videos([one], sampling=EVEN)
    assert seen.frames.shape == (4, 16, 32, 3)  # three seconds
    assert (seen.metadata.total_num_frames, seen.metadata.fps) == (12, 4)
    assert seen.metadata.frames_indices == [0, 4, 7, 11]
    assert np.abs(seen.frames.mean(axis=(1, 2, 3)) - [0, 80, 140, 220]).max() < 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a video .*: it is empty, broken or of another format"),
        (b"no video" * 100, "cannot be read as a video"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "cannot be read as a video"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "cannot be read as a video"),
    ],
)
def test_what_is_no_clip_is_refused(clip, tmp_path, content, message):
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(SampleError, match=message):
        open_videos([stored(tmp_path / "b.mp4")], sampling=EVEN)


def test_a_clip_that_is_cut_off_says_how_many_frames_can_be_decoded(clip, tmp_path):
    content = (clip / "a.avi").read_bytes()
    (tmp_path / "b.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(
        SampleError, match=r"declares 12 frames, and \d+ of them can be decoded|cannot be read as a video"
    ):
        open_videos([stored(tmp_path / "b.avi")], sampling=EVEN)


def test_a_large_clip_is_refused_before_it_is_decoded(clip):
    with pytest.raises(SampleError, match="declares frames of 32 x 16 = 512 pixels, limit 500"):
        open_videos([stored(clip / "a.mp4")], sampling=EVEN, max_pixels=500)


def test_rows_in_memory_are_written_and_read_back_with_their_videos(tmp_path):
    """Frames inside the data, a folder and a file elsewhere: LLaVA JSON names copies of them."""
    folder = written(tmp_path / "f", 2)
    (tmp_path / "a.mp4").write_bytes(b"clip")
    given = [
        talk("<video>\n<video>\nAlike?", videos=[[Image.fromarray(one) for one in frames(2)], str(folder)]),
        talk(video=str(tmp_path / "a.mp4"), id="8"),
    ]
    done = write_llava(given, tmp_path / "out" / "rows.jsonl")
    assert (done.rows, done.written, done.left_out) == (2, 5, [])
    first, second = load_rows(tmp_path / "out" / "rows.jsonl")
    assert [row["problem"] for row in (first, second)] == [None, None]
    for seen in open_videos(first["videos"], sampling=EVEN):
        assert np.array_equal(seen.frames, frames(2))
    assert Path(second["videos"][0]["path"]).read_bytes() == b"clip"
