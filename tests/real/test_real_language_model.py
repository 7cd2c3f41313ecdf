"""A real language model as the language half of a LLaVA: what it says of text stays, and its logits have the tails of real ones."""

import json

import pytest
import torch
from fused_cases import States, analytic, by_autograd, fused, gradients, plain, signals
from oracles import dbild as dbild_loop
from oracles import knee as knee_loop
from run_files import write_data
from smollm2 import needs_smollm2, write_smollm2
from student_files import write_vision
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from switchkd import cli, distill
from switchkd.losses import Head, dbild, fused_loss, knee, plain_loss
from switchkd.losses.knee import leader_order
from switchkd.methods import SwitchKD
from switchkd.pairing.vocabulary import Vocabulary
from switchkd.recipe.schema import load_recipe

pytestmark = [pytest.mark.slow, needs_smollm2]

ROWS = 49152
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Which planet do we live on?": "Earth",
    "What is the opposite of hot?": "cold",
}
TEXT = (
    "The cat sat on the mat, and the dog lay by the door. In 1969 two men walked on the Moon; the third stayed in orbit. "
    "def add(a, b):\n    return a + b\nLe chat est sur la table. 12 + 30 = 42, and 7 * 8 = 56. It was a bright cold day in April, and "
    "the clocks were striking thirteen. Water boils at 100 degrees Celsius."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `language`, the `student` that `switchkd init` makes around it, and a `teacher` that sees otherwise."""
    made = tmp_path_factory.mktemp("smollm2")
    write_smollm2(made / "language")
    write_vision(made / "eyes")
    write_vision(made / "sharper", seed=7)
    for name, vision, seed in (("student", "eyes", "0"), ("teacher", "sharper", "1")):
        parts = ["--vision", str(made / vision), "--language", str(made / "language"), "--seed", seed]
        assert cli.main(["init", str(made / name), *parts]) == 0
    return made


@pytest.fixture(scope="module")
def language(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "language").eval()
    return model, AutoTokenizer.from_pretrained(folder / "language")


def asked(question, content):
    return [{"role": "user", "content": content(question)}]


def as_text(question):
    return question


def as_parts(question):
    return [{"type": "text", "text": question}]


def answer(model, ids):
    generated = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)
    return generated[0, ids.shape[1] :]


@torch.no_grad()
def test_init_leaves_the_logits_of_text_as_they_are_to_the_bit(folder, language):
    plain_model, tokenizer = language
    student = AutoModelForImageTextToText.from_pretrained(folder / "student").eval()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    before, after = plain_model(ids).logits, student(input_ids=ids).logits
    assert after.shape[-1] == 49216  # for `<image>`, in blocks of 64
    assert torch.equal(after[..., :ROWS], before)
    # rows that are the mean of all others have an unremarkable logit
    assert (after[..., ROWS:] < before.amax(dim=-1, keepdim=True)).all()


def test_three_steps_of_switch_kd_leave_its_answers_to_text(folder, language, tmp_path):
    plain_model, tokenizer = language
    before = {}
    for question, word in QUESTIONS.items():
        ids = tokenizer.apply_chat_template(
            asked(question, as_text), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).input_ids
        before[question] = ids[0].tolist(), answer(plain_model, ids).tolist()
        assert word in tokenizer.decode(before[question][1])
    write_data(tmp_path / "train.json", 6)
    (tmp_path / "recipe.yaml").write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: {{name: switch_kd}}
data: {{train: {tmp_path}/train.json, max_length: 256}}
train: {{output: {tmp_path}/run, max_steps: 3, per_device_train_batch_size: 2, learning_rate: 1.0e-6, logging_steps: 1, save_steps: 3}}
"""
    )
    distill(load_recipe(tmp_path / "recipe.yaml"))
    logged = [json.loads(line) for line in (tmp_path / "run/1-train/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    student = AutoModelForImageTextToText.from_pretrained(tmp_path / "run/student").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "run/student")
    trained = student.state_dict()
    unchanged = []
    for name, tensor in plain_model.state_dict().items():
        of_student = name if name == "lm_head.weight" else name.replace("model.", "model.language_model.", 1)
        if torch.equal(trained[of_student][: len(tensor)], tensor):
            unchanged.append(name)
    assert unchanged == []  # it has learned, everywhere
    after = {}
    for question in QUESTIONS:
        ids = processor.apply_chat_template(
            asked(question, as_parts), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        after[question] = ids[0].tolist(), answer(student, ids).tolist()
    assert after == before


@pytest.fixture(scope="module")
@torch.no_grad()
def states(language):
    """At each token of a text, the last hidden states: all layers for the teacher, four less for the student, two less for the switch."""
    model, tokenizer = language
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    hidden = model(ids, output_hidden_states=True).hidden_states
    # the last one is normed already
    teacher, student, switch = hidden[-1][0], *(model.model.norm(hidden[depth][0]) for depth in (26, 28))
    weight = model.lm_head.weight.detach().clone()
    grown = torch.cat([weight, weight.mean(0).expand(64, -1)])
    return States(
        targets=ids[0].roll(-1)[:-1],
        student=student[:-1].clone().requires_grad_(),
        weight=grown.requires_grad_(),
        bias=None,
        teacher=teacher[:-1],
        switch=switch[:-1].clone().requires_grad_(),
        teacher_weight=weight,
        teacher_bias=None,
    )


@torch.no_grad()
def logits(states):
    return states.teacher @ states.teacher_weight.T, states.student @ states.weight[:ROWS].T


def test_logits_are_chosen_as_a_whole_sort_chooses_them(states):
    """Also in bfloat16, in which a real vocabulary has many equal logits."""
    for z in logits(states):
        for dtype in (torch.float32, torch.bfloat16):
            leader = z.to(dtype)
            expected = leader.sort(dim=-1, descending=True, stable=True).indices
            for window in (8, 128, 1024, None):
                assert torch.equal(leader_order(leader, window), expected[:, :window])
    ties = leader.gather(1, expected[:, :129])
    assert (ties[:, 127] == ties[:, 128]).sum() > 5  # at the window's edge


def test_knees_of_real_curves_are_the_loops(states):
    for z in logits(states):
        for window, some in ((128, z[::3]), (None, z[::24])):
            found = knee(some, window=window)
            assert found.tolist() == [knee_loop(row, window, 3) for row in some.double().tolist()]
        of_window = knee(z, window=128)
        assert len(set(of_window.tolist())) > 10  # sure and unsure places


def test_dbild_of_real_logits_is_the_loops(states):
    teacher, student = (z[::16] for z in logits(states))
    expected = dbild_loop(student, teacher, 3.0, 128, 3)
    torch.testing.assert_close(dbild(student, teacher).tolist(), expected, rtol=1e-3, atol=1e-5)
    exact = dbild(student.double(), teacher.double())
    torch.testing.assert_close(
        exact.tolist(), dbild_loop(student.double(), teacher.double(), 3.0, 128, 3), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_the_fused_loss_is_the_plain_one(states, dtype, rtol):
    method, x = SwitchKD(), states.to(dtype)
    found = fused(method, x, analytic(method), vocabulary=ROWS, chunk=13)
    terms, statistics = plain(method, x, vocabulary=ROWS)
    for name, value in terms.items():
        torch.testing.assert_close(found.terms[name], value.detach(), rtol=rtol, atol=0)
    for name, value in statistics.items():  # sums of knees, which are whole numbers
        torch.testing.assert_close(found.statistics[name].double(), value.double(), rtol=0, atol=0)
    expected = gradients(torch.stack(list(terms.values())).sum(), x)
    for one, other in zip(gradients(found.loss, x), expected, strict=True):
        assert (one - other).norm() <= 10 * rtol * other.norm()
    unfused = plain_loss(by_autograd(method), signals(method, x, ROWS))
    torch.testing.assert_close(
        fused_loss(analytic(method), signals(method, x, ROWS)).loss, unfused.loss, rtol=rtol, atol=0
    )


@pytest.mark.parametrize(
    "kept", ["half of the ids", "the first 40,000", "all but the likeliest id of each token", "all but one"]
)
def test_the_mass_of_ids_that_are_not_compared_is_their_probability(states, kept):
    teacher, _ = logits(states)
    keep = torch.ones(ROWS, dtype=torch.bool)
    if kept == "half of the ids":
        keep[::2] = False
    elif kept == "the first 40,000":
        keep[40_000:] = False
    elif kept == "all but one":
        keep[ROWS - 1] = False
    else:
        keep[teacher.argmax(dim=-1)] = False
    ids = keep.nonzero().flatten().tolist()
    vocabulary = Vocabulary((ids, ids), Head(states.weight, None, None), Head(states.teacher_weight, None, None))
    found = vocabulary.dropped_mass(states.teacher, Head(states.teacher_weight, None, None))
    p = (states.teacher.double() @ states.teacher_weight.double().T).softmax(dim=-1)
    expected = p[:, ~keep].sum(dim=-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    if kept.startswith("all but the likeliest"):
        assert expected.min() > 0.05
