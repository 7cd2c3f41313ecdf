"""The fused loss in training: the numbers of the plain one, whatever the method, precision and head."""

import logging

import pytest
import sharded
import torch
from ranks import run_on_two_ranks
from steps import collate, make_trainer, read_metrics, rows
from tiny_models import IMAGE_TOKEN, tiny_llava
from transformers import TrainerCallback

from switchkd.batch import TEACHER
from switchkd.losses import ChunkLoss, CrossEntropyDBiLD
from switchkd.methods import (
    EMKD,
    KD,
    METHODS,
    SFT,
    AlignKD,
    AlignTI,
    BiLD,
    CompoDistill,
    FeatureKD,
    LLaVAKD,
    LLaVAMoD,
    SwitchKD,
)
from switchkd.models import Pathway
from switchkd.names import VisualWeights

CASES = [SFT(), KD(), KD(beta=0.5, temperature=2.0), BiLD(), SwitchKD(window=32), SwitchKD(align=0.0, window=None)]
CASES += [LLaVAMoD(temperature=2.0)]
#: With terms about the inside of both models, which are added to those on the answers.
RIVALS = [FeatureKD(window=32), LLaVAKD(temperature=2.0), AlignKD(top=3, attention=20.0, projected=0.05, focus=0.05)]
RIVALS += [EMKD(temperature=2.0), CompoDistill(looks=3.0), CompoDistill(reading="code"), AlignTI(instructed=3.0)]
RIVALS += [SwitchKD(window=32, switch_layers=1), SwitchKD(window=32, switch_layers=0, align=0.0)]
CASES += RIVALS
#: With weights of answers, one of them by gradients that are written out.
WEIGHTS = VisualWeights(share=0.4, high=0.8)
WEIGHTED = [KD().weighted(WEIGHTS), SwitchKD(window=32).weighted(WEIGHTS)]
CASES += WEIGHTED
#: Terms and statistics of each.
LINES = {
    "sft": 1,
    "kd": 2,
    "bild": 2,
    "feature_kd": 5,
    "llava_kd": 4,
    "llava_mod": 2,
    "align_kd": 5,
    "em_kd": 4,
    "compodistill": 3,
    "align_ti": 3,
    "weighted": 7,
}


def test_every_method_is_compared():
    assert {type(method.core) for method in CASES} == set(METHODS.values())


def trained(output, **settings):
    """The log of three steps, and the student they leave."""
    trainer = make_trainer(output, **settings)
    trainer.train()
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
    lines = [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(output)]
    return lines, trainer.pair.student.state_dict()


def assert_same(one, other, *, rounding=1e-9):
    for a, b in zip(one[0], other[0], strict=True):
        assert a == pytest.approx(b, rel=rounding, abs=1e-6)  # the Trainer keeps the loss in float32
    for name, value in one[1].items():
        torch.testing.assert_close(value, other[1][name], rtol=0, atol=rounding, msg=name)


@pytest.mark.parametrize("method", CASES, ids=str)
def test_fused_and_plain_train_alike(method, tmp_path):
    fused, plain = (trained(tmp_path / loss, method=method, loss=loss) for loss in ("fused", "plain"))
    assert_same(fused, plain)
    if isinstance(method, SwitchKD):  # a switch that does not run to the answers has no knee
        expected = {(1, True): 6, (0, True): 4, (1, False): 5, (0, False): 2}[method.align, "switch" in method.needs]
    else:
        expected = LINES[method.name]
    if method == WEIGHTED[0]:
        expected = LINES["kd"] + 1  # and the visual advantage
    bookkeeping = {"step", "loss", "grad_norm", "learning_rate", "epoch", "answer_tokens"}
    assert len(set(fused[0][0]) - bookkeeping) == expected


@pytest.mark.long
@pytest.mark.parametrize("method", [*RIVALS, *WEIGHTED], ids=str)
def test_accumulated_sample_terms_are_the_same_step(method, tmp_path):
    runs = []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        output = tmp_path / str(batch_size)
        runs.append(trained(output, method=method, batch_size=batch_size, accumulation=accumulation))
    # eager attention's softmax is float32 whatever the model is, so rows of another padded length are rounded otherwise
    rounding = 1e-6 if any(site.eager_attention for site in method.sites) else 1e-9
    assert_same(runs[0], runs[1], rounding=rounding)
    assert_same(runs[0], runs[2], rounding=rounding)


def test_sample_terms_are_logged_as_means_over_answer_tokens(tmp_path):
    trainer = make_trainer(tmp_path, method=FeatureKD(window=32), steps=1, data=rows(4))
    batch = next(iter(trainer.get_train_dataloader()))
    seen = [pathway.see(batch.student) for pathway in (trainer.pair.student.train(), trainer.pair.teacher)]
    errors = iter((seen[0] - seen[1]).square().mean(dim=(1, 2)).tolist())  # one image or none in each row
    values = [next(errors) if image else 0.0 for image in (batch.student.tokens == IMAGE_TOKEN).any(dim=1)]
    answers = batch.student.sample.bincount(minlength=4).tolist()
    assert 0 in values
    trainer.train()
    expected = sum(value * count for value, count in zip(values, answers, strict=True)) / sum(answers)
    assert read_metrics(tmp_path)[0]["features"] == pytest.approx(expected, abs=1e-9)


def test_maps_that_no_sample_needs_get_a_gradient_of_zero(tmp_path):
    """Or DDP waits for it."""

    class Skips(AlignKD):
        def sample_terms(self, signals, learned):
            return {}

    seen = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            seen.extend(p.grad.abs().max().item() for p in model.pair.learned.parameters())

    trainer = make_trainer(tmp_path, method=Skips(), steps=1)
    trainer.add_callback(Gradients())
    trainer.train()
    assert seen == [0, 0, 0, 0]


@pytest.mark.long
def test_accumulated_and_tied(tmp_path):
    runs = []
    for loss, batch_size, accumulation in (("fused", 4, 1), ("fused", 1, 4), ("plain", 4, 1)):
        model = tiny_llava(seed=2, tied=True).double()
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        student = Pathway(model)
        student.train_only(("vision", "projector", "language"))
        output = tmp_path / f"{loss}-{accumulation}"
        runs.append(trained(output, student=student, loss=loss, batch_size=batch_size, accumulation=accumulation))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def float32(output, **settings):
    """A trainer on float32 models and pixels."""
    student = Pathway(tiny_llava(seed=2))
    student.train_only(("vision", "projector", "language"))
    data = [{**row, "pixels": None if row["pixels"] is None else row["pixels"].float()} for row in rows()]
    trainer = make_trainer(output, student=student, data=data, bf16=True, **settings)
    trainer.pair.teacher.float()
    return trainer


def test_under_bf16_the_logits_stay_float32_and_the_losses_equal(tmp_path):
    seen = []

    class Recorded(SwitchKD):
        def chunk_loss(self):
            return Recording(super().chunk_loss())

    class Recording(ChunkLoss):
        def __init__(self, written_out: CrossEntropyDBiLD):
            self.written_out = written_out

        def __call__(self, logits, **asked):
            one = logits.compared[TEACHER]
            dtypes = (logits.student.dtype, one.teacher.dtype, one.switch.dtype)
            seen.append((*dtypes, torch.is_autocast_enabled("cpu")))
            return self.written_out(logits, **asked)

    float32(tmp_path / "fused", method=Recorded(window=32)).train()
    assert set(seen) == {(torch.float32, torch.float32, torch.float32, False)}
    float32(tmp_path / "plain", method=SwitchKD(window=32), loss="plain").train()
    # Before the first update: gradients of bf16 hidden states are rounded, which moves a knee in a later step
    fused, plain = (read_metrics(tmp_path / loss)[0] for loss in ("fused", "plain"))
    for name in ("loss", "ce", "align", "switch", "knee_teacher", "knee_student", "knee_switch"):
        assert fused[name] == pytest.approx(plain[name], rel=1e-5), name
    assert fused["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("method", [AlignKD, LLaVAKD, FeatureKD, EMKD, CompoDistill, AlignTI])
def test_under_bf16_sample_terms_are_computed_outside_autocast(tmp_path, method):
    seen = []

    class Recorded(method):
        def sample_terms(self, signals, learned):
            values = super().sample_terms(signals, learned)
            seen.append((torch.is_autocast_enabled("cpu"), {value.dtype for value in values.values()}))
            return values

    trainer = float32(tmp_path, method=Recorded(), steps=1)
    if trainer.pair.learned is not None:
        trainer.pair.learned.float()
    trainer.train()
    assert seen == [(False, {torch.float32})]


def test_the_chunk_is_told_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "switchkd"):
        trained(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "answer tokens" in record.getMessage()]
    tokens = int(read_metrics(tmp_path)[0]["answer_tokens"])
    assert line == f"fused loss: logits of {tokens} answer tokens at a time, of {tokens} in the first batch"


@pytest.mark.slow
def test_sharded_over_two_ranks_the_loss_and_every_gradient_are_those_of_one_process(tmp_path):
    run_on_two_ranks("sharded.py", tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt")
    step = sharded.make_step()
    alone = step(collate(sharded.ROWS[0] + sharded.ROWS[1]))
    alone.loss.backward()
    torch.testing.assert_close(found["loss"], alone.loss.detach(), rtol=0, atol=1e-10)
    expected = sharded.gradients(step)
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=0, atol=1e-10, msg=name)
    assert "the student's head is sharded (DTensor)" in found["refusal"]
    assert "leave the head to FSDP's root" in found["refusal"]


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_the_switch_weighs_more_from_step_to_step_while_it_warms_up(tmp_path, loss):
    still = {"learning_rate": 0.0, "loss": loss, "steps": 4}
    cold, warm = (
        trained(tmp_path / str(share), method=SwitchKD(window=32, switch_warmup=share), **still)[0]
        for share in (0.5, 0.0)
    )
    for step, share in enumerate((0.5, 1.0, 1.0, 1.0)):
        assert cold[step]["switch"] == pytest.approx(share * warm[step]["switch"], rel=1e-6)
        assert cold[step]["align"] == pytest.approx(warm[step]["align"], rel=1e-6)


def test_a_step_that_warms_up_is_the_same_however_it_is_accumulated(tmp_path):
    method = SwitchKD(window=32, switch_warmup=1.0)
    one, four = (
        trained(tmp_path / str(size), method=method, batch_size=size, accumulation=4 // size) for size in (4, 1)
    )
    assert_same(one, four)
