"""Processors of the families that read videos, with video processors of tiny sizes, models that fit them, and rows with videos."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image
from tiny_processors import PROCESSORS, tiny_for
from transformers import ProcessorMixin

_QWEN = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
_SQUARE = {"size": {"height": 16, "width": 16}}
_TILE = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "num_frames": 8, "fps": 1}
#: Build → class and settings of its video processor.
VIDEO_PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VLVideoProcessor", {**_QWEN, "min_pixels": 64, "max_pixels": 1024}),
    "qwen2_5_vl": ("Qwen2VLVideoProcessor", {**_QWEN, "min_pixels": 64, "max_pixels": 1024}),
    "qwen3_vl": ("Qwen3VLVideoProcessor", {**_QWEN, "size": {"shortest_edge": 64, "longest_edge": 4096}}),
    "internvl-qwen2": ("InternVLVideoProcessor", _SQUARE),
    "llava_onevision": ("LlavaOnevisionVideoProcessor", _SQUARE),
    "smolvlm": ("SmolVLMVideoProcessor", _TILE),
}


def video_processor(name: str) -> ProcessorMixin:
    """The tiny processor of a build, which reads videos."""
    kind, settings = VIDEO_PROCESSORS[name]
    processor = PROCESSORS[name]()
    processor.video_processor = getattr(hf, kind)(**settings)
    return processor


def frames(count: int, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    """Random pixels: [count, height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> dict[str, Any]:
    """A picture as rows have it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def video(count: int, seed: int = 0, **size: int) -> dict[str, Any]:
    """A video as rows have it, of so many frames."""
    return {"bytes": None, "path": None, "frames": [png(one) for one in frames(count, seed=seed, **size)]}


def write_clip(file: Path, codec: str = "mpeg4", height: int = 16, width: int = 32) -> Path:
    """Twelve frames of one grey each, from black to light, four in a second. Needs PyAV."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(12):
            grey = np.full((height, width, 3), 20 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file


def row(
    name: str, shown: list[tuple[str, dict[str, Any]]], question: str = "What is it?", answer: str = "A cat."
) -> dict[str, Any]:
    """A row of one question about pictures ("image") and videos ("video"), in this order."""
    parts = [{"type": kind, "text": None} for kind, _ in shown]
    return {
        "id": name,
        "source": None,
        "images": [one for kind, one in shown if kind == "image"],
        "videos": [one for kind, one in shown if kind == "video"],
        "messages": [
            {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
        "kinds": [None],
        "accepted": [],
        "metric": None,
        "teacher": None,
        "problem": None,
    }


def rows() -> list[dict[str, Any]]:
    """With a video, a picture, a picture between two videos, and nothing to see."""
    image = ("image", png(frames(1, 16, 32, seed=9)[0]))
    return [
        row("video", [("video", video(4, seed=1))]),
        row("picture", [image]),
        row("both", [("video", video(4, seed=2)), image, ("video", video(2, seed=3))], answer="A dog."),
        row("text", []),
    ]


def write_files(folder: Path, name: str, processor) -> None:
    """Two checkpoints, and rows in LLaVA's form: a folder of frames, a list of them, a picture, and text."""
    for seed, part in enumerate(("student", "teacher")):
        tiny_for(name, processor, seed=seed, depth=3 + seed).save_pretrained(folder / part)
        processor.save_pretrained(folder / part)
    for clip, count in (("rain", 6), ("sun", 3)):
        (folder / clip).mkdir()
        for number, pixels in enumerate(frames(count, seed=count)):
            Image.fromarray(pixels).save(folder / clip / f"{number}.png")
    listed = [f"sun/{number}.png" for number in range(3)]
    shown = [{"video": "rain"}, {"video": listed}, {"image": "rain/0.png"}, {}]
    lines = []
    for number, media in enumerate(shown):
        mark = "".join(f"<{kind}>\n" for kind in media)
        turns = [
            {"from": "human", "value": f"{mark}What is it?"},
            {"from": "gpt", "value": f"A cat {'and a dog ' * number}."},
        ]
        lines.append(json.dumps({"id": f"r{number}", **media, "conversations": turns}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: {{name: switch_kd, window: 32}}
data: {{train: {folder}/train.jsonl, max_length: 512, video: {{fps: 4, max_frames: 4}}}}
train: {{output: {folder}/run, max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, save_steps: 2, learning_rate: 0.01}}
evaluate: {{data: {folder}/train.jsonl, max_new_tokens: 2}}
"""
    )
