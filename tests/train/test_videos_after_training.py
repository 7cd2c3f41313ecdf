"""A student that could read videos still does once it is trained and saved, by plain transformers code: its own template writes them."""

import numpy as np
import pytest
import torch
import transformers
from cases import open_tiny
from tiny_processors import PROCESSORS
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd.data.template_choice import use_format
from switchkd.train.checkpoint import save_student

VISION = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}


def own(image: str, video: str) -> str:
    """ChatML as published with models that read videos, shortened."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for part in m['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


QWEN = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 64, "max_pixels": 4096}
SQUARE = {"size": {"height": 16, "width": 16}}
#: Build → class and settings of its video processor, and its own chat template; SmolVLM's writes no videos, its processor brings another.
READERS = {
    "qwen2_vl": ("Qwen2VLVideoProcessor", QWEN, own(**VISION)),
    "qwen2_5_vl": ("Qwen2VLVideoProcessor", QWEN, own(**VISION)),
    "qwen3_vl": (
        "Qwen3VLVideoProcessor",
        {**QWEN, "size": {"shortest_edge": 64, "longest_edge": 4096}},
        own(VISION["image"], "<|video_pad|>"),
    ),
    "internvl-qwen2": ("InternVLVideoProcessor", SQUARE, own("<IMG_CONTEXT>", "<video>")),
    "llava_onevision": ("LlavaOnevisionVideoProcessor", SQUARE, own("<image>", "<video>")),
    "smolvlm": (
        "SmolVLMVideoProcessor",
        {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "num_frames": 4, "fps": 1},
        None,
    ),
}


def video():
    return np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


def asked(processor, frames):
    parts = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens?"}]
    return processor.apply_chat_template(
        [[{"role": "user", "content": parts}]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"do_sample_frames": False},
    )


@pytest.mark.parametrize("name", READERS)
def test_a_trained_and_saved_student_reads_a_video(name, tmp_path):
    pytest.importorskip("torchvision")
    kind, settings, template = READERS[name]

    def processor():
        made = PROCESSORS[name]()
        made.video_processor = getattr(transformers, kind)(**settings)
        made.chat_template = template
        return made

    opened = open_tiny(tmp_path, name, processor=processor())
    use_format(opened.run.processor, opened.run.reader.format)
    config = opened.run.student.model.config
    config.video_token_id = opened.run.processor.tokenizer.convert_tokens_to_ids(opened.run.processor.video_token)
    loss = opened.step(opened.collator([opened.rows[index] for index in range(2)])).loss
    loss.backward()
    torch.optim.SGD(opened.run.student.model.parameters(), 1e-3).step()
    save_student(opened.run.student, opened.run.processor, "", tmp_path / "saved")

    plain = AutoProcessor.from_pretrained(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    inputs = asked(plain, video())
    before = asked(processor(), video())
    assert inputs["input_ids"].tolist() == before["input_ids"].tolist()
    assert inputs.keys() == before.keys()
    generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
    with torch.no_grad():
        seen, other = (model(**asked(plain, frames)).logits[0, -1] for frames in (video(), video()[::-1] // 2))
    assert (seen - other).abs().max() > 1e-3
