"""The method of the examples: its values, and a run that is trained by it."""

import json

import pytest
import torch
from pairs import make_pair
from run_files import write_run
from tiny_models import VOCABULARY, tiny_batch
from transformers import AutoModelForImageTextToText

from examples.own_method import TopKD, main
from switchkd import METHODS, TEACHER, DistillationStep, forward_kl


def test_it_is_forward_kl_over_the_teachers_likeliest_tokens():
    logits = make_pair(needs=TopKD().needs)(tiny_batch()).logits()
    compared = logits.compared[TEACHER]
    top = TopKD(weight=2.0, k=3).token_terms(logits)["top"].values
    for value, student, teacher in zip(top, compared.student, compared.teacher, strict=True):
        ids = sorted(range(VOCABULARY), key=lambda token: float(teacher[token]), reverse=True)[:3]
        p, q = teacher[ids].softmax(dim=0), student[ids].softmax(dim=0)
        torch.testing.assert_close(value, 2 * (p * (p / q).log()).sum(), rtol=1e-4, atol=1e-5)
    everything = TopKD(k=VOCABULARY).token_terms(logits)["top"].values
    torch.testing.assert_close(everything, forward_kl(compared.student, compared.teacher), rtol=1e-4, atol=1e-5)


def test_the_fused_loss_takes_it_as_it_is():
    pair, batch = make_pair(needs=TopKD().needs).double(), tiny_batch()
    images = {"image": {"pixel_values": batch.student.images["pixel_values"].double()}}
    inputs = batch.student._replace(media=images)
    batch = batch._replace(student=inputs, readers={TEACHER: inputs})
    fused, plain = (DistillationStep(pair, TopKD(k=5), loss=loss)(batch) for loss in ("fused", "plain"))
    assert fused.terms.keys() == plain.terms.keys() == {"ce", "top"}
    torch.testing.assert_close(fused.loss, plain.loss)


@pytest.mark.long
def test_a_recipe_names_it_and_a_student_comes_out(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, TopKD.name, TopKD)  # and takes it away again
    recipe = write_run(tmp_path)
    flags = ["--method.name", "top_kd", "--method.k", "5", "--train.max_steps", "2", "--train.logging_steps", "1"]
    folder = main(str(recipe), *flags)
    AutoModelForImageTextToText.from_pretrained(folder)
    (metrics,) = (tmp_path / "run").glob("*/metrics.jsonl")
    lines = [line for line in map(json.loads, metrics.read_text().splitlines()) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"] == pytest.approx(line["ce"] + line["top"], rel=1e-3) for line in lines)
    assert METHODS[TopKD.name] is TopKD
