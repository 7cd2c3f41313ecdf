"""The models of a world of photographs: what their parts learn from, and the whole through the command line, tiny."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from labelled_photos import write_photos_folder
from student_files import write_language
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from switchkd.cli import main
from switchkd.models import load_pathway
from switchkd.pairing import Pair
from switchkd.pretraining import photo_models, scales
from switchkd.pretraining.in_words import Packer
from switchkd.pretraining.photo_stream import Squares, as_pixels, patch_labels
from switchkd.pretraining.scales import SCALES, Lessons, TowerPlan
from switchkd.pretraining.small_llava import begun, pieces, small_processor, whole_words
from switchkd.pretraining.tower import train_tower
from switchkd.results.question_results import Results
from switchkd.results.study_results import StudyResults
from switchkd.world import student_path, teacher_path
from switchkd.world.grids import Grid, Shown
from switchkd.world.photographs import load_photographs

PLAN = TowerPlan(128, 3, 4, 128, image_size=96, patch=16, steps=2, batch=2, learning_rate=1e-3)
TINY = replace(
    SCALES["cpu"],
    tower=PLAN,
    other_tower=TowerPlan(96, 2, 4, 96, image_size=72, patch=12, steps=2, batch=2, learning_rate=1e-3),
    word_steps=2,
    student_word_steps=2,
    projector_steps=2,
    pictures=4,
    lessons=Lessons(steps=2, batch=2, learning_rate=1e-3, vision_learning_rate=1e-3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photos_folder(tmp_path_factory.mktemp("made") / "photos")


@pytest.fixture(scope="module")
def squares(folder):
    return Squares(load_photographs(folder), "train", 96)


def test_patch_labels_say_what_fills_the_cell_of_each_patch():
    small = Grid(2, (Shown(0, 1, "b", "x"), Shown(1, 0, "a", "y")))
    large = Grid(3, (Shown(1, 2, "c", "z"),))
    labels = patch_labels([small, large], ["a", "b", "c"], 6).reshape(2, 6, 6, 3)
    assert labels[0, :3, 3:].reshape(-1, 3).unique(dim=0).tolist() == [[2, 0, 2]]
    assert labels[0, 3:, :3].reshape(-1, 3).unique(dim=0).tolist() == [[1, 2, 0]]
    assert labels[0, 3:, 3:].reshape(-1, 3).unique(dim=0).tolist() == [[0, 2, 2]]
    assert labels[1, 2:4, 4:].reshape(-1, 3).unique(dim=0).tolist() == [[3, 1, 2]]
    assert (labels[1, ..., 0] > 0).sum() == 4


def test_crowded_pictures_show_photographs_of_the_split_alone_and_others_each_time(squares):
    drawn = list(islice(squares.crowded(1), 20))
    allowed = {digest for digest, _ in squares.photographs.of("train")}
    assert {one.digest for each in drawn for one in each.grid.shown} <= allowed
    assert np.mean([len(each.grid.shown) / each.grid.side**2 for each in drawn]) > 0.8
    again = list(islice(squares.crowded(1), 20))
    assert all((a.pixels == b.pixels).all() for a, b in zip(drawn, again, strict=True))
    pixels = as_pixels(drawn, 72)
    assert pixels.shape == (20, 3, 72, 72)
    assert -1 <= pixels.min() < 0 < pixels.max() <= 1


def test_packed_rows_are_what_the_processor_makes_of_the_conversation(squares):
    drawn = list(islice(squares.asked(0), 3))
    texts = [text for one in drawn for q in one.questions for text in (q.text, q.answer)]
    tokenizer = whole_words(texts)
    template = AutoProcessor.from_pretrained(teacher_path()).chat_template
    processor = small_processor(tokenizer, PLAN, template)
    tokens, mask, predicts, targets = Packer(tokenizer, PLAN.side**2)(drawn)
    answered = 0
    for index, one in enumerate(drawn):
        messages = []
        for turn, question in enumerate(one.questions):
            image = [{"type": "image"}] if turn == 0 else []
            messages += [
                {"role": "user", "content": [*image, {"type": "text", "text": question.text}]},
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            ]
        text = processor.apply_chat_template(messages)
        expected = processor(text=[text], images=[one.pixels], return_tensors="pt")
        assert torch.equal(tokens[index][mask[index].bool()], expected["input_ids"][0])
        torch.testing.assert_close(expected["pixel_values"][0], as_pixels([one], 96)[0])
        marked = tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        learned = [i for i, answer in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if answer]
        assert targets[answered : answered + len(learned)].tolist() == learned
        answered += len(learned)
    assert answered == len(targets)
    assert torch.equal(tokens.flatten()[predicts + 1], targets)


def test_tokenizers_are_the_same_for_the_same_texts_and_write_answers_as_they_are(squares):
    texts = [text for one in islice(squares.asked(0), 30) for q in one.questions for text in (q.text, q.answer)]
    for make in (whole_words, lambda given: pieces(given, 200)):
        first, second = make(iter(texts)), make(iter(texts))
        assert first.get_vocab() == second.get_vocab()
        for text in ("red fox, empty, pond", "top and bottom", "none", "2"):
            assert first.decode(first(text, add_special_tokens=False).input_ids).strip() == text
        assert first("<image><|user|>", add_special_tokens=False).input_ids == first.convert_tokens_to_ids(
            ["<image>", "<|user|>"]
        )
    whole = whole_words(iter(texts))
    listed = [token for token, _ in sorted(whole.get_vocab().items(), key=lambda item: item[1])]
    assert listed[-20:] == sorted(listed[-20:])  # in an order that no hash table decides
    assert whole.tokenize("meadow zq") == ["meadow", "z", "##q"]


ODD = [
    "n01440764",
    "10",
    "100",
    "3",
    "boeing 737",
    "3d printer",
    "t shirt/top",
    "potter's wheel",
    "people (group)",
    "c++",
    "café 2",
]


def test_names_with_digits_and_punctuation_are_read_and_written_as_they_are(tmp_path):
    plain = ["red fox", "st. bernard", "black & white", "jack o", "café", "猫 猫", "do not enter", "empty", "1"]
    texts = [
        *ODD,
        *plain,
        "Compare the rows of the red fox and the 10.",
        "How many n01440764 photographs are there?",
        "2",
    ]
    whole_words(texts, [*ODD, *plain]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for first in [*ODD, *plain]:
        for text in (first, f"{first}, empty, {first}", f"red fox, {first}"):
            ids = tokenizer(f"<|assistant|>{text}<|end|>", add_special_tokens=False).input_ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert tokenizer.unk_token_id not in ids
    assert tokenizer.tokenize("the n01440764 1005?") == ["the", "n01440764", *"1005", "?"]
    assert whole_words(texts, plain).backend_tokenizer.to_str() == whole_words(texts).backend_tokenizer.to_str()
    odd = begun(student_path(), tokenizer, PLAN, ODD).model.language_model.embed_tokens.weight[
        tokenizer("10 100").input_ids
    ]
    assert torch.isfinite(odd).all()
    assert not torch.equal(*odd)
    with pytest.raises(ValueError, match=r"cannot name the class '\.net core'.*rename it"):
        whole_words(texts, [*plain, ".net core"])


def test_a_known_word_keeps_its_row_and_a_class_begins_near_the_old_forms():
    torch.manual_seed(0)
    tokenizer = whole_words(["Where is the zebra, top, middle or bottom?", "zebra"])
    model = begun(student_path(), tokenizer, PLAN, ["zebra"])
    old = LlavaForConditionalGeneration.from_pretrained(student_path())
    words = AutoProcessor.from_pretrained(student_path()).tokenizer
    new_rows, old_rows = model.model.language_model.embed_tokens.weight, old.model.language_model.embed_tokens.weight
    for word in ("Where", "middle", "<|end|>", "<image>"):
        assert torch.equal(
            new_rows[tokenizer.convert_tokens_to_ids(word)], old_rows[words.convert_tokens_to_ids(word)]
        ), word
    forms = old_rows[words.convert_tokens_to_ids(["ring", "star", "cross", "circle"])]
    zebra = new_rows[tokenizer.convert_tokens_to_ids("zebra")]
    assert torch.isfinite(zebra).all()
    assert (zebra - forms.mean(0)).norm() < 4 * forms.std(0).norm()
    for name, weights in old.model.language_model.layers.state_dict().items():
        assert torch.equal(model.model.language_model.layers.state_dict()[name], weights), name
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.long
def test_a_tower_learns_what_is_in_the_cells(squares, capfd):
    """Classes that differ in colour are told apart within some steps."""
    train_tower(replace(PLAN, layers=2, steps=60, batch=8), squares, seed=0)
    said = capfd.readouterr().err
    share = float(said.split("the class of ")[1].split("%")[0])
    assert share > 80, said


@pytest.mark.parametrize(("image_size", "patch"), [(96, 20), (96, 24)])
def test_patches_that_do_not_fill_cells_are_refused(image_size, patch):
    with pytest.raises(ValueError, match="6 patches or a multiple"):
        replace(PLAN, image_size=image_size, patch=patch)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """The command's output at a tiny size, and what it printed."""
    output = tmp_path_factory.mktemp("world") / "photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scales.SCALES, "cpu", TINY)
        command = ["world", str(folder), "--output", str(output), "--train", "6", "--test", "3", "--validation", "2"]
        assert main(command) == 0
        before = {path: path.stat().st_mtime_ns for path in (output / "making").rglob("*")}
        assert main(command) == 0
        assert {path: path.stat().st_mtime_ns for path in (output / "making").rglob("*")} == before
    return output


@pytest.mark.long
def test_the_command_writes_a_world_whose_models_load_and_fit(made):
    report = json.loads((made / "world.json").read_text())
    assert report["classes"] == ["meadow", "pond", "red fox", "snow"]
    assert report["photographs"] == {"train": 68, "validation": 4, "test": 8}
    assert report["shown"].keys() == {"train", "validation", "test"}
    assert report["teacher"] == Results.load(made / "teacher.results.json").score
    assert 0 < report["blind"] < 100
    teacher, student, other = (load_pathway(made / name) for name in ("teacher", "student", "student-other"))
    tower = teacher.model.model.vision_tower.encoder.layers
    kept = student.model.model.vision_tower.encoder.layers
    assert (len(tower), len(kept)) == (3, 2)
    for mine, origin in ((kept[0], tower[0]), (kept[1], tower[-1])):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), origin.parameters(), strict=True))
    tokens = len(AutoProcessor.from_pretrained(made / "student").tokenizer)
    student.train_only(("vision",))
    Pair(student, teacher, needs=frozenset({"student", "teacher", "switch"}), vocabulary=tokens)
    processors = [AutoProcessor.from_pretrained(made / name) for name in ("teacher", "student-other")]
    assert processors[0].tokenizer.get_vocab() != processors[1].tokenizer.get_vocab()
    assert other.model.config.vision_config.hidden_size != teacher.model.config.vision_config.hidden_size
    AutoModelForImageTextToText.from_pretrained(made / "student-other")


@pytest.mark.long
def test_what_is_printed_says_disjointness_scores_and_what_to_do(folder, made, monkeypatch, capfd):
    monkeypatch.setitem(scales.SCALES, "cpu", TINY)
    command = ["world", str(folder), "--output", str(made), "--train", "6", "--test", "3", "--validation", "2"]
    assert main(command) == 0
    shown = capfd.readouterr()
    assert (
        "photographs: 68 for train, 4 for validation, 8 for test, in 4 classes (meadow, pond, red fox, snow)"
        in shown.out
    )
    assert "0 in two splits" in shown.out
    assert "mean of kinds" in shown.out
    assert "Add photographs, take fewer classes" in shown.err  # of a teacher that has learned two steps
    assert main([*command[:-1], "3"]) == 1
    assert "choose another --output or remove it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "0"], "--train and --test must be at least 1"),
        (["--validation", "-1"], "--train and --test must be at least 1"),
    ],
)
def test_numbers_that_make_no_world_are_refused(folder, tmp_path, capfd, flags, message):
    assert main(["world", str(folder), "--output", str(tmp_path / "w"), *flags]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_folder_that_cannot_be_asked_about_ends_the_command(tmp_path, capfd):
    photos = write_photos_folder(tmp_path / "photos", classes=("snow",))
    assert main(["world", str(photos), "--output", str(tmp_path / "w")]) == 1
    assert "has 1 class of photographs (snow)" in capfd.readouterr().err
    assert main(["world", str(tmp_path / "nowhere"), "--output", str(tmp_path / "w")]) == 1
    assert "no such file or folder" in capfd.readouterr().err


@pytest.mark.slow
def test_the_scale_of_a_gpu_runs_with_a_small_language_model(folder, tmp_path, monkeypatch):
    """The parts are the same ones, of other sizes: SmolLM2 is replaced by a language model of three small layers."""
    small = TowerPlan(48, 4, 2, 64, image_size=192, patch=32, steps=2, batch=2, learning_rate=1e-3)
    scale = replace(
        SCALES["gpu"],
        tower=small,
        other_tower=replace(small, width=24, layers=2, image_size=144, patch=24),
        projector_steps=2,
        pictures=4,
        lessons=Lessons(steps=2, batch=2, learning_rate=1e-4, vision_learning_rate=1e-4),
        student_layers=2,
        student_language_layers=2,
    )
    monkeypatch.setitem(scales.SCALES, "gpu", scale)
    monkeypatch.setattr(photo_models, "write_smollm2", lambda new: write_language(new, "llama", rows=400))
    output = tmp_path / "photos"
    command = ["world", str(folder), "--output", str(output), "--train", "4", "--test", "2", "--scale", "gpu"]
    assert main(command) == 0
    teacher, student, other = (load_pathway(output / name) for name in ("teacher", "student", "student-other"))
    assert len(teacher.model.model.vision_tower.encoder.layers) == 4
    assert len(student.model.model.vision_tower.encoder.layers) == len(student.model.model.language_model.layers) == 2
    assert other.model.config.vision_config.hidden_size == 24
    assert {model.model.config.vision_feature_layer for model in (teacher, student, other)} == {-1}


@pytest.mark.slow
def test_a_study_on_photographs_trains_matched_and_other_students(folder, made, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    study = {
        "recipe": "recipes/photos.yaml",
        "output": str(tmp_path / "study"),
        "world": {"photos": str(folder), "train": 6, "test": 3, "models": str(made)},
        "seeds": [0],
        "baseline": "SFT",
        "arms": {
            "SFT": {"method": {"name": "sft"}, "train": {"max_steps": 2}},
            "Switch-KD": {"method": {"name": "switch_kd"}, "train": {"max_steps": 2}},
            "other": {
                "method": {"name": "switch_kd"},
                "train": {"max_steps": 2},
                "student": {"path": str(made / "student-other")},
            },
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", str(tmp_path / "mine.yaml")]) == 0
    done = StudyResults.load(tmp_path / "study" / "study.json")
    assert {cell.arm for cell in done.cells} == set(study["arms"])
    assert len({cell.data_fingerprint for cell in done.cells}) == 1
