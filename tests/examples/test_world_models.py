import subprocess
import sys
from itertools import islice

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples.world_weights.models import UNKNOWN, VISUAL_TOKENS, student_config, teacher_config
from switchkd import world
from switchkd.world import write_student
from switchkd.world.write import samples

LONGEST_ANSWER = 10


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(world.teacher_path())


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForImageTextToText.from_pretrained(world.teacher_path()).eval()


def test_the_teacher_is_one_small_file():
    weights = list(world.teacher_path().glob("*.safetensors"))
    assert [file.name for file in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= 10e6


def test_every_text_of_the_world_is_known_words(processor):
    tokenizer = processor.tokenizer
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    for _, questions, _ in islice(samples(11, "test", "hard"), 200):
        for question in questions:
            for text in (question.text, question.answer):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert unknown not in ids
                assert not any(token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids)), text
            assert tokenizer.decode(ids) == question.answer
    assert len(tokenizer) <= teacher_config().text_config.vocab_size


def test_teacher_and_student_fit_without_a_bridge():
    teacher, student = teacher_config(), student_config()
    assert teacher.vision_config.hidden_size == student.vision_config.hidden_size
    assert teacher.vision_config.image_size == student.vision_config.image_size
    assert teacher.vision_config.patch_size == student.vision_config.patch_size
    assert teacher.text_config.vocab_size == student.text_config.vocab_size
    assert teacher.image_token_id == student.image_token_id


def test_the_teacher_answers_each_question_alone(teacher, processor):
    prompts, pictures, answers = [], [], []
    for _, questions, picture in islice(samples(12, "test", "medium"), 12):
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            messages = [{"role": "user", "content": content}]
            prompts.append(processor.apply_chat_template(messages, add_generation_prompt=True))
            pictures.append(Image.fromarray(picture))
            answers.append(question.answer)
    inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == teacher.config.image_token_id).sum(1).unique().tolist() == [VISUAL_TOKENS]
    generated = teacher.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    said = processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = sum(a == b for a, b in zip(said, answers, strict=True))
    assert right / len(answers) >= 0.85, f"{right} of {len(answers)} right"


def test_a_student_starts_from_the_shipped_weights_and_is_smaller(tmp_path):
    write_student(tmp_path)
    student, shipped = (load_file(folder / "model.safetensors") for folder in (tmp_path, world.student_path()))
    assert all(torch.equal(student[key], shipped[key]) for key in shipped)
    teacher = load_file(world.teacher_path() / "model.safetensors")
    assert sum(t.numel() for t in student.values()) < 0.6 * sum(t.numel() for t in teacher.values())


@pytest.mark.slow
def test_the_student_loads_and_answers_where_switchkd_is_not_installed(tmp_path):
    write_student(tmp_path / "student")
    Image.new("RGB", (48, 48)).save(tmp_path / "picture.png")
    script = """
import sys
sys.modules["switchkd"] = None
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained("student")
model = AutoModelForImageTextToText.from_pretrained("student")
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the circle?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.open("picture.png")], return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] - inputs["input_ids"].shape[1])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "3"
