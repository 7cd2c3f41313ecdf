"""Rows with videos are trained on, asked about and talked about: as each family's own processor writes them."""

import json

import numpy as np
import pytest
import torch
from tiny_processors import PROCESSORS, tiny_for
from tiny_videos import VIDEO_PROCESSORS, frames, row, rows, video, video_processor, write_files
from transformers import AutoProcessor

from switchkd import distill, load_recipe
from switchkd.chat.conversation import Conversation
from switchkd.data.errors import SampleError, UnequalVideosError
from switchkd.data.reader import Reader
from switchkd.data.template_choice import use_format
from switchkd.evaluate.generate import answers, load
from switchkd.train.teacher_cache import make_caches

pytest.importorskip("torchvision")
#: Of each way in which videos enter one; the others take as long again.
_SHORT = ("qwen2_5_vl", "llava_onevision", "smolvlm")
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _SHORT else pytest.mark.long) for name in VIDEO_PROCESSORS]
)


@pytest.fixture(scope="module")
def processors():
    return {name: video_processor(name) for name in VIDEO_PROCESSORS}


@every_family
def test_a_question_about_a_video_is_read_as_plain_code_reads_it(processors, name):
    processor = processors[name]
    reader = Reader(processor)
    use_format(processor, reader.format)
    asked = row("r", [("video", video(4))])
    known = {
        "total_num_frames": 4,
        "fps": reader.sampling.fps,
        "duration": 4 / reader.sampling.fps,
        "frames_indices": [0, 1, 2, 3],
    }
    expected = processor.apply_chat_template(
        [
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": frames(4)}, {"type": "text", "text": "What is it?"}],
                }
            ]
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"do_sample_frames": False, "video_metadata": [known]},
    )
    made = reader.prompts([{**asked, "messages": asked["messages"][:1]}])
    assert made.keys() == expected.keys()
    for key, tensor in made.items():
        torch.testing.assert_close(tensor, torch.as_tensor(expected[key]), rtol=0, atol=0, msg=key)


@every_family
def test_answers_about_videos_are_those_of_each_alone(processors, name):
    """In a batch with a picture, with nothing to see, and with a video of another length."""
    processor = processors[name]
    model = tiny_for(name, processor)
    asked = [
        {**one, "messages": one["messages"][:1]} for one in rows() if name != "llava_onevision" or one["id"] != "both"
    ]
    asked.append({**row("short", [("video", video(2, seed=5))]), "messages": asked[0]["messages"]})
    together = answers(model, processor, asked, max_new_tokens=6)
    assert together == [answers(model, processor, [one], max_new_tokens=6)[0] for one in asked]
    assert len({answer.text for answer in together}) > 1


def test_what_plain_onevision_cannot_be_asked_at_once_is_named(processors):
    reader = Reader(processors["llava_onevision"])
    unequal = [{**row(str(n), [("video", video(n))]), "messages": rows()[0]["messages"][:1]} for n in (2, 4)]
    with pytest.raises(UnequalVideosError, match=r"these have 2, 4: see as many of each with data.video.max_frames"):
        reader.prompts(unequal)
    both = {**rows()[2], "messages": rows()[2]["messages"][:1]}
    with pytest.raises(
        SampleError, match="sample 'both': cannot be asked: the model takes as many frames of each of its videos"
    ):
        reader.prompts([both])


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "gemma3", "qwen2_vl"])
def test_a_processor_that_reads_no_videos_names_the_row(name):
    reader = Reader(PROCESSORS[name]())
    kind = type(reader.processor).__name__
    why = (
        f"{kind} has no video processor: load it where torchvision"
        if name == "qwen2_vl"
        else f"{kind} reads none: leave the row out"
    )
    with pytest.raises(SampleError, match=f"sample 'video': has 1 videos, and {why}"):
        reader.encode(rows()[0])


def test_videos_are_never_cut(processors):
    for name in ("qwen2_5_vl", "smolvlm"):
        whole = Reader(processors[name]).encode(rows()[0])
        before = whole.answers[0]
        shorter = Reader(processors[name], max_length=before + 1).encode(rows()[0])
        assert len(shorter.tokens) == before + 1
        assert shorter.media.keys() == whole.media.keys()
        with pytest.raises(
            SampleError, match=r"its last video ends at token \d+, but max_length is 20; .*fewer frames \(data.video\)"
        ):
            Reader(processors[name], max_length=20).encode(rows()[0])


# ---- whole runs


#: Of the normal suite: one family; the others, and other ways to train, take as long each.
RUNS = {
    "qwen2_5_vl": ("qwen2_5_vl", []),
    **{name: (name, []) for name in VIDEO_PROCESSORS if name != "qwen2_5_vl"},
    "packed": ("qwen3_vl", ["--data.packing", "true"]),
    "streamed": ("qwen2_5_vl", ["--data.streaming", "true"]),
    "from a cache": ("qwen2_5_vl", ["--teacher.cache", "cache"]),
    "written by the student": ("qwen2_5_vl", ["--on_policy.share", "1", "--on_policy.max_new_tokens", "4"]),
}


@pytest.mark.parametrize(
    "run", [pytest.param(one, marks=pytest.mark.long if one == "qwen2_5_vl" else pytest.mark.slow) for one in RUNS]
)
def test_two_steps_an_evaluation_and_the_saved_student(processors, run, tmp_path, monkeypatch):
    name, flags = RUNS[run]
    write_files(tmp_path, name, processors[name])
    recipe = load_recipe(tmp_path / "recipe.yaml", flags)
    if run == "from a cache":
        monkeypatch.chdir(tmp_path)
        assert make_caches(recipe)
    distill(recipe)
    logged = [json.loads(line) for line in (tmp_path / "run/1-train/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert len(losses) == 2
    assert all(map(np.isfinite, losses))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["questions"] == 4
    saved = AutoProcessor.from_pretrained(tmp_path / "run/student")
    assert (Reader(saved).sampling.fps, Reader(saved).sampling.max_frames) == (4, 4)
    conversation = Conversation(*load(tmp_path / "run/student"), max_new_tokens=4)
    conversation.show([], [tmp_path / "rain"])
    first = conversation.ask("What is it?")
    assert conversation.ask("Is it?") is not None
    conversation.show([], [tmp_path / "rain"])
    assert conversation.ask("What is it?") == first


def test_a_model_that_reads_no_videos_says_so_in_a_conversation(tmp_path):
    processor = PROCESSORS["llava-siglip-qwen2"]()
    conversation = Conversation(tiny_for("llava-siglip-qwen2", processor), processor, max_new_tokens=2)
    with pytest.raises(SampleError, match="this model cannot be shown a video: LlavaProcessor reads none"):
        conversation.show([], [tmp_path])
