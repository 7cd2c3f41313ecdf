"""The blocks of docs/own_loop.md run as they are printed."""

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_files import write_data, write_model
from transformers import AutoModelForImageTextToText

from switchkd import dbild

PAGE = (Path(__file__).parents[1] / "docs" / "own_loop.md").read_text(encoding="utf-8")
LOOP, TRAINER, TRL = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Tiny models and data where the page says that the demo leaves its own."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "runs/demo/teacher", seed=1, hidden=40, depth=3)
    write_model(tmp_path / "runs/demo/student-init", seed=2)
    write_data(tmp_path / "runs/demo/data/train.json", 4)


@pytest.mark.usefixtures("demo")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_loop_and_the_trainer_train_the_student():
    names: dict = {}
    exec(LOOP, names)
    assert len(names["losses"]) == 2
    looped = {name: value.clone() for name, value in names["student"].model.state_dict().items()}
    start = AutoModelForImageTextToText.from_pretrained("runs/demo/student-init").state_dict()
    assert any(not torch.equal(start[name], looped[name]) for name in start if "vision_tower" in name)
    exec(TRAINER, names)
    assert names["trainer"].state.global_step == 2
    trained = AutoModelForImageTextToText.from_pretrained("runs/own-trainer/student").state_dict()
    assert any(not torch.equal(trained[name], looped[name]) for name in trained if "vision_tower" in name)
    teacher = AutoModelForImageTextToText.from_pretrained("runs/demo/teacher").state_dict()
    assert all(torch.equal(teacher[name], value) for name, value in names["teacher"].model.state_dict().items())


class Base:
    """What TRL's trainer does with a batch, as far as the page relies on it: a loss and outputs with all logits."""

    def __init__(self, model, args):
        self.model, self.args = model, args

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class Tiny(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Embedding(20, 20)

    def forward(self, input_ids, labels=None):
        logits = self.table(input_ids)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:])
        return SimpleNamespace(logits=logits, loss=loss)


def test_the_loss_inside_of_trl_is_taken_at_the_answers(monkeypatch):
    """With a stand-in for TRL's trainer; the next test has the real one."""
    monkeypatch.setitem(__import__("sys").modules, "trl", SimpleNamespace(SFTTrainer=Base))
    names: dict = {}
    exec(TRL, names)
    student, teacher = Tiny(0), Tiny(1)
    trainer = names["DBiLDTrainer"](student, SimpleNamespace(device="cpu"), teacher=teacher)
    inputs = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "labels": torch.tensor([[-100, -100, 3, 4], [-100] * 3 + [8]]),
    }
    loss = trainer.compute_loss(student, inputs)
    at = torch.tensor([2, 3, 7])  # the tokens before the answers 3, 4 and 8
    expected = dbild(student.table(at), teacher.table(at).detach()).mean()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    torch.testing.assert_close(loss - student(**inputs).loss, expected)


@pytest.mark.usefixtures("demo")
@pytest.mark.filterwarnings("ignore")  # TRL's own
@pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")
def test_trl_trains_with_the_loss(tmp_path):
    from datasets import Dataset, Image, List
    from transformers import AutoProcessor
    from trl import SFTConfig

    names: dict = {}
    exec(TRL, names)
    models = [AutoModelForImageTextToText.from_pretrained(f"runs/demo/{who}") for who in ("student-init", "teacher")]
    text = {
        "prompt": [{"role": "user", "content": "What is it?"}],
        "completion": [{"role": "assistant", "content": "red"}],
    }
    pictures = [str(path) for path in sorted((tmp_path / "runs/demo/data/images").glob("*.png"))]
    rows = Dataset.from_list([text | {"images": [path]} for path in pictures]).cast_column("images", List(Image()))
    arguments = SFTConfig(
        "runs/trl",
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        loss_type="nll",
        max_length=None,
        use_cpu=True,
    )
    processor = AutoProcessor.from_pretrained("runs/demo/student-init")
    trainer = names["DBiLDTrainer"](
        models[0], arguments, train_dataset=rows, processing_class=processor, teacher=models[1]
    )
    trainer.train()
    assert trainer.state.global_step == 1
