"""LoRA reaches the language model of every family and nothing else, and is merged into a plain checkpoint."""

import pytest
import torch
from tiny_families import BUILDS, inputs_for, tiny
from torch import nn

from switchkd.models import Pathway, load_pathway
from switchkd.train import lora


def answers(pathway, inputs):
    return pathway.logits(pathway.say(pathway.see(inputs), inputs))


@pytest.mark.parametrize("name", BUILDS)
def test_adapters_train_and_merge(name, tmp_path):
    student, inputs = Pathway(tiny(name)), inputs_for(name)
    expected = student.model.state_dict().keys()
    untouched = answers(student, inputs)
    body = student.part("language")[0]
    linear = sum(isinstance(module, nn.Linear) for module in body.modules())
    lora.add(student, r=2, alpha=4, dropout=0.0)
    torch.testing.assert_close(answers(student, inputs), untouched)
    student.train_only(("vision", "projector", "language"))
    adapters = [n for n, p in student.part_parameters("language").items() if p.requires_grad]
    assert len(adapters) == 2 * linear >= 2 * 7 * 3
    assert all(".lora_" in n for n in adapters)
    assert not [n for n in student.model.state_dict() if ".lora_" in n and n not in adapters]

    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in adapters:
            student.model.get_parameter(adapter).normal_(std=0.3)
    trained = answers(student, inputs)
    assert (trained - untouched).abs().max() > 1e-3
    plain = lora.plain(student, student.model.state_dict())
    assert plain.state_dict().keys() == expected
    plain.save_pretrained(tmp_path)
    torch.testing.assert_close(answers(load_pathway(tmp_path), inputs), trained, rtol=1e-4, atol=1e-4)
