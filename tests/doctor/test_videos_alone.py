"""A stage whose rows show videos and no pictures."""

import pytest
import torch
from cases import collated_by, found, open_tiny, with_inputs
from tiny_videos import row, video, video_processor

pytest.importorskip("torchvision")
SAMPLES = [row(str(number), [("video", video(4, seed=number))], answer="A cat." * (1 + number)) for number in range(3)]


def blind(inputs):
    media = {
        name: torch.zeros_like(one) if name.startswith("pixel") else one for name, one in inputs.media["video"].items()
    }
    return inputs._replace(media={"video": media})


@pytest.mark.long
@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_the_doctor_looks_at_videos_where_there_are_no_pictures(name, tmp_path):
    opened = open_tiny(tmp_path, name, processor=video_processor(name), samples=SAMPLES)
    lines = found(opened)
    assert {check for check, (level, _) in lines.items() if level == "failed"} == set()
    for model in ("student", "teacher"):
        level, detail = lines[f"{model} sees videos"]
        assert (level, "with its videos" in detail) == ("ok", True)
        assert lines[f"{model}'s image tokens"][0] == "ok"
    if name == "qwen2_5_vl":
        spoilt = found(collated_by(opened, lambda batch: with_inputs(batch, blind)))
        assert spoilt["student sees videos"][0] == "failed"
