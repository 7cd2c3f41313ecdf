"""Decoding is plain greedy whatever a checkpoint's generation config says, and an answer out of NaN is an error."""

import functools
import json

import pytest
import torch
from run_files import write_data, write_model
from transformers import GenerationConfig

from switchkd import cli
from switchkd.chat.conversation import Conversation
from switchkd.data.formats import load_rows
from switchkd.evaluate import evaluate_model
from switchkd.evaluate.generate import answers, greedy, load, set_aside
from switchkd.evaluate.questions import prompt, questions

#: Settings as checkpoints have them. Each moves the answers of a plain `generate`, its time, or the form of what comes back.
SETTINGS = {
    "sampling": {"do_sample": True, "temperature": 9.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5},
    "beams": {"num_beams": 3, "length_penalty": 5.0, "early_stopping": True},
    "several answers": {"num_beams": 3, "num_return_sequences": 3},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 3.0},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "layers": {"dola_layers": "high"},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "repetition": {"repetition_penalty": 3.0},
    "repetition of the question": {"encoder_repetition_penalty": 5.0},
    "n-grams": {"no_repeat_ngram_size": 1},
    "n-grams of the question": {"encoder_no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": list(range(3, 300))},
    "suppressed first": {"begin_suppress_tokens": list(range(3, 300))},
    "bad words": {"bad_words_ids": [[token] for token in range(3, 300)]},
    "bias": {"sequence_bias": [[[7], 99.0]]},
    "shortest": {"min_length": 500},
    "shortest answer": {"min_new_tokens": 6},
    "longest": {"max_length": 2},
    "time": {"max_time": 1e-9},
    "a last token": {"forced_eos_token_id": 5},
    "a first token": {"forced_bos_token_id": 5},
    "decay": {"exponential_decay_length_penalty": [0, 9.0]},
    "guidance": {"guidance_scale": 7.0},
    "watermark": {"watermarking_config": {"bias": 50.0, "context_width": 1}},
    "stop strings": {"stop_strings": ["e", "a", " "]},
    "healing": {"token_healing": True},
    "a form": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "normalised": {"renormalize_logits": True, "remove_invalid_values": True},
    "no cache": {"use_cache": False},
    "another cache": {"cache_implementation": "quantized", "cache_config": {"nbits": 2}},
    "chunks": {"prefill_chunk_size": 2},
    "a later version": {"a_setting_of_a_later_version": [1, 2]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding")
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "test.json", 2)
    return folder


@pytest.fixture(scope="module")
def student(folder):
    return load(folder / "student")


@pytest.fixture(scope="module")
def rows(folder):
    samples = load_rows(folder / "data" / "test.json")
    return [prompt(samples[question.sample], question.turn) for question in questions(samples)[0]]


@pytest.fixture(scope="module")
def plain(student, rows):
    return answers(*student, rows, max_new_tokens=6)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_a_checkpoint_moves_an_answer(student, rows, plain, name, monkeypatch):
    model, processor = student
    said = model.generation_config.to_dict() | {"_from_model_config": False}
    saved = GenerationConfig.from_dict(said | SETTINGS[name])
    monkeypatch.setattr(model, "generation_config", saved)
    assert answers(model, processor, rows, max_new_tokens=6) == plain
    assert model.generation_config is saved
    assert set_aside(model).keys() == SETTINGS[name].keys()


def test_every_field_that_transformers_knows_is_set_aside_but_three(student, monkeypatch):
    model, _ = student
    saved = GenerationConfig()
    names = [name for name in vars(saved) if not name.startswith("_") and name != "transformers_version"]
    for name in names:
        setattr(saved, name, 7)
    monkeypatch.setattr(model, "generation_config", saved)
    kept = {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert len(names) > 60
    assert set_aside(model).keys() == set(names) - kept
    says = {name: value for name, value in vars(greedy(model, 5)).items() if value is not None}
    assert says == dict.fromkeys(kept, 7) | {"max_new_tokens": 5, "do_sample": False, "num_beams": 1}


def test_nothing_is_set_aside_of_a_checkpoint_that_says_nothing(student):
    assert set_aside(student[0]) == {}


def test_the_results_say_what_was_set_aside(folder, tmp_path, capsys):
    write_model(tmp_path / "student", seed=2)
    file = tmp_path / "student" / "generation_config.json"
    wanted = {"min_new_tokens": 60, "suppress_tokens": [5], "sequence_bias": [[[7], 99.0]], "max_time": 1e-9}
    file.write_text(json.dumps(json.loads(file.read_text()) | wanted))
    data, output = folder / "data" / "test.json", tmp_path / "results.json"
    command = ["evaluate", str(tmp_path / "student"), str(data), "--output", str(output), "--max-new-tokens", "5"]
    assert cli.main(command) == 0
    assert json.loads(output.read_text())["generation_set_aside"] == wanted
    assert "suppress_tokens" in capsys.readouterr().err
    plain = evaluate_model(folder / "student", data, max_new_tokens=5)
    told = [json.loads(line)["got"] for line in (tmp_path / "results.predictions.jsonl").read_text().splitlines()]
    assert told == [prediction.got for prediction in plain.predictions]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["lm_head.weight", "multi_modal_projector"])
def test_an_answer_out_of_numbers_that_are_not_finite_is_an_error(folder, tmp_path, value, part, capsys):
    model, processor = load(folder / "student")
    with torch.no_grad():
        next(weight for name, weight in model.named_parameters() if part in name).view(-1)[0] = value
    data = folder / "data" / "test.json"
    with pytest.raises(
        FloatingPointError, match=r"sample 'test-0': the logits of token 1 of the answer are not finite"
    ):
        evaluate_model(model, data, processor=processor, max_new_tokens=3, output=tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []
    talk = Conversation(model, processor, max_new_tokens=3)
    talk.show([folder / "data" / "images" / "test-0.png"])
    with pytest.raises(FloatingPointError, match="not finite"):
        talk.ask("What?")
    model.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "student"), str(data), "--output", str(tmp_path / "r.json")]) == 1
    assert "are not finite" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
    image = ["--image", str(folder / "data" / "images" / "test-0.png"), "--question", "What?"]
    assert cli.main(["chat", str(tmp_path / "student"), *image]) == 1
    assert "are not finite" in capsys.readouterr().err


def test_what_a_sample_that_has_ended_is_padded_with_does_not_count(student, rows, monkeypatch):
    """The model goes on for the others of a batch: NaN behind an answer is not in it."""
    model, processor = student
    forward, calls = model.forward, []

    @functools.wraps(forward)  # transformers reads its arguments
    def first_ends_at_once(*args, **kwargs):
        made = forward(*args, **kwargs)
        made.logits[0] = float("nan") if calls else 0.0
        made.logits[0, -1, processor.tokenizer.eos_token_id] = 9.0
        calls.append(made)
        return made

    monkeypatch.setattr(model, "forward", first_ends_at_once)
    given = answers(model, processor, rows[:2], max_new_tokens=4)
    assert (given[0].text, given[0].truncated) == ("", False)
    assert len(calls) == 4
